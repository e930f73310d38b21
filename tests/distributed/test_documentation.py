"""Every recipe of docs/distributed.md ends with the eager model; docs/trained.md is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from assertions import assert_same_tensors, tensors_of
from jobs.documented import eager_model
from launch import RunRanks

import dormant
from pages import blocks, follow_page

# Those with models of transformers are run in test_transformers.py.
RECIPES = {
    block.heading: block.code
    for block in blocks("distributed.md")
    if "from transformers" not in block.code
}


def test_the_recipes_are_found() -> None:
    assert list(RECIPES) == [
        "FSDP2",
        "Tensor parallelism",
        "Shard first, initialize later",
        "DDP",
        "Pipeline",
        "Checkpoints",
        "Shared reads",
        "Quantized",
        "Tensor parallelism, quantized",
        "Folders of torch.distributed.checkpoint",
    ]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_ends_with_the_eager_model(
    run_ranks: RunRanks, title: str, tmp_path: Path
) -> None:
    model = eager_model()
    if title in ("Checkpoints", "Shared reads") or "uantized" in title:
        state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / "model.safetensors")
        model.load_state_dict(state)
    if "uantized" in title:
        dormant.quantize(model, "nf4", skip=())
    whole = tensors_of(model)
    found: dict[str, torch.Tensor] = {}
    results = run_ranks(2, "documented:run", code=RECIPES[title], folder=str(tmp_path))
    for rank, result in enumerate(results):
        assert result["lazy"] == []
        gathered = {
            name.removeprefix("module."): tensor for name, tensor in result["gathered"].items()
        }
        expected = {name: whole[name] for name in gathered}
        assert_same_tensors(expected, gathered, f"rank {rank}")
        assert title == "Pipeline" or len(gathered) == len(whole)
        found |= gathered
    assert found.keys() == whole.keys()


@pytest.mark.timeout(900)  # starts eight processes, which import torch
def test_a_trained_model_is_saved_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = follow_page("trained.md")
    saved = safetensors.torch.load_file("model.safetensors")
    torch.manual_seed(0)
    begun = dict(names["Model"]().named_parameters())
    assert not any(torch.equal(begun[name], tensor) for name, tensor in saved.items())
    read = tensors_of(names["model"])
    assert_same_tensors({name: saved[name] for name in read}, read, "one process")
    assert len(read) == len(saved)
    for folder in ("by-torch", "by-dormant"):
        found = dormant.open_checkpoint(folder)
        for name, tensor in saved.items():
            assert torch.equal(found[f"model.{name}"], tensor)
    ours, theirs = (dormant.open_checkpoint(name) for name in ("by-dormant", "by-torch"))
    assert any(name.startswith("optimizer.state") for name in ours)
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
