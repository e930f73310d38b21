"""transformers' own ways to divide a model, inside the context: the library's result, lazily."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs.pretrained import FAMILIES, TOKENS, permute_projections, whole
from launch import RunRanks
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from compare import assert_same_bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    for name, configuration in FAMILIES.items():
        torch.manual_seed(9)
        AutoModelForCausalLM.from_config(configuration()).save_pretrained(folder / name)
    return folder


CASES = [
    (family, way)
    for family in FAMILIES
    for way in ("TP", "FSDP2", "EP")
    if way != "EP" or family != "llama"
]


@pytest.mark.parametrize(("family", "way"), CASES)
def test_distributed_config(run_ranks: RunRanks, folder: Path, family: str, way: str) -> None:
    path = folder / family
    expected = whole(AutoModelForCausalLM.from_pretrained(path))
    for rank, found in enumerate(
        run_ranks(2, "pretrained:load", path=str(path), way=way, permuted=False)
    ):
        assert found["real"] == []
        assert list(found["eagerly"]) == list(found["lazily"])
        for name, tensor in found["eagerly"].items():
            assert_same_bits(tensor, found["lazily"][name], f"rank {rank}: {name}")
        assert_same_bits(found["eagerly output"], found["lazily output"], f"rank {rank}")
        for name, tensor in found["lazily whole"].items():
            assert_same_bits(expected[name], tensor, name)
        # Each rank reads its own part, and what all have; columns of small matrices with the gaps.
        assert found["read"] < (1 if way == "TP" else 0.8) * found["size"]


@pytest.mark.parametrize("way", ["TP", "FSDP2"])
def test_rows_that_are_permuted_when_they_are_loaded(
    run_ranks: RunRanks, folder: Path, way: str
) -> None:
    """Parts are cut from what was permuted, as in one process (transformers#48519)."""
    path = folder / "llama"
    permute_projections()
    try:
        model = AutoModelForCausalLM.from_pretrained(path).eval()
    finally:
        register_checkpoint_conversion_mapping("llama", [], overwrite=True)
    expected, output = whole(model), model(torch.tensor(TOKENS)).logits.detach()
    plain = whole(AutoModelForCausalLM.from_pretrained(path))
    changed = [name for name, tensor in expected.items() if not torch.equal(tensor, plain[name])]
    assert len(changed) == 4
    for found in run_ranks(2, "pretrained:load", path=str(path), way=way, permuted=True):
        for name, tensor in found["lazily whole"].items():
            assert_same_bits(expected[name], tensor, name)
        torch.testing.assert_close(output, found["lazily output"])
