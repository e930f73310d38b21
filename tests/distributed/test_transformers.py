"""transformers' own ways to divide a model, inside the context: the library's result, lazily."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs.pretrained import FAMILIES, TOKENS, permute_projections, whole
from launch import RunRanks
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from compare import assert_same_bits
from pages import follow_page


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
def test_distributed_config(
    run_ranks: RunRanks, folder: Path, tmp_path: Path, family: str, way: str
) -> None:
    path = folder / family
    expected = whole(AutoModelForCausalLM.from_pretrained(path))
    # torch's planner refuses gate and up in one tensor that are divided each (_StridedShard).
    can_be_saved = way != "TP" or family not in ("mixtral", "qwen3_moe")
    for rank, found in enumerate(
        run_ranks(
            2,
            "pretrained:load",
            path=str(path),
            way=way,
            permuted=False,
            folder=str(tmp_path / "saved") if can_be_saved else "",
        )
    ):
        assert found["real"] == []
        assert list(found["eagerly"]) == list(found["lazily"])
        for name, tensor in found["eagerly"].items():
            assert_same_bits(tensor, found["lazily"][name], f"rank {rank}: {name}")
        assert_same_bits(found["eagerly output"], found["lazily output"], f"rank {rank}")
        for name, tensor in found["lazily whole"].items():
            assert_same_bits(expected[name], tensor, name)
        assert ("saved" in found) == can_be_saved
        for name, tensor in found.get("saved", {}).items():
            assert_same_bits(expected[name], tensor, f"saved: {name}")
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


@pytest.mark.timeout(900)
def test_the_page_about_qlora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are trained as on one process, by bitsandbytes and peft alone."""
    monkeypatch.chdir(tmp_path)
    names = follow_page("qlora.md")
    got = torch.load(tmp_path / "adapters.pt")

    configuration = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = LlamaForCausalLM.from_pretrained(
        tmp_path / "llama",
        quantization_config=configuration,
        dtype=torch.bfloat16,
        device_map="cpu",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(names["config"])  # draws what the program records
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).train()
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-2)
    tokens = torch.arange(12).view(1, 12)
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    assert got.keys() == expected.keys()
    assert any(bool(tensor.any()) for name, tensor in got.items() if "lora_B" in name)
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)
    used = names["model"].state_dict()
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor.detach(), used[name].detach(), name)
