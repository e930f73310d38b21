"""docs/tutorial.md runs as it stands, and ends with what plain PyTorch and bitsandbytes give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import dormant
from compare import assert_same_bits
from pages import blocks, follow_page

pytestmark = pytest.mark.timeout(900)  # starts five processes, which import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the page's code leaves behind; run once, in `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return follow_page("tutorial.md")
    finally:
        os.chdir(before)


@pytest.mark.usefixtures("names")
def test_every_step_shows_what_it_prints() -> None:
    shown = [block.output for block in blocks("tutorial.md", "python", "sh") if not block.file]
    assert len(shown) > 12
    assert all(shown)


def eager(names: dict[str, Any], seed: int, kind: str = "LlamaForCausalLM") -> Any:
    torch.manual_seed(seed)
    return getattr(transformers, kind)(names["config"])


def test_the_saved_checkpoint_is_the_eager_model(folder: Path, names: dict[str, Any]) -> None:
    expected = eager(names, 0).to(torch.bfloat16)
    assert len(list((folder / "llama").glob("*.safetensors"))) > 1
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder / "llama", dtype=torch.bfloat16)
    for name, parameter in expected.named_parameters():
        assert_same_bits(parameter.detach(), loaded.get_parameter(name).detach(), name)


def test_reports_are_drawn(folder: Path, names: dict[str, Any]) -> None:
    assert (folder / "report.svg").read_text().startswith("<?xml")
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_classifier_has_the_checkpoint_and_its_own_head(names: dict[str, Any]) -> None:
    body = eager(names, 0).to(torch.bfloat16).state_dict()
    head = eager(names, 1, "LlamaForSequenceClassification").score.weight
    for name, tensor in names["classifier"].state_dict().items():
        expected = head.detach() if name == "score.weight" else body[name].float()
        assert_same_bits(expected, tensor, name)
    assert_same_bits(
        body["model.layers.0.self_attn.q_proj.weight"][:64].float(), names["first"], "slice"
    )


def test_the_quantized_model_is_the_one_of_bitsandbytes(
    folder: Path, names: dict[str, Any]
) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        folder / "llama",
        dtype=torch.bfloat16,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    expected = theirs.state_dict()
    state = names["model"].state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)


def test_two_ranks_compute_what_one_process_does(folder: Path, names: dict[str, Any]) -> None:
    with dormant.lazy_init(dtype=torch.bfloat16):
        whole = transformers.LlamaForCausalLM(names["config"])
    dormant.quantize(whole, dormant.FourBit(storage_dtype=torch.bfloat16))
    dormant.load(whole, folder / "llama")
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = whole(input_ids=torch.arange(12).view(1, 12)).logits
    for rank in range(2):
        assert_same_bits(expected, torch.load(folder / f"logits.{rank}.pt"), f"rank {rank}")
