"""The code of docs/quantize.md and docs/experts.md runs and does what the pages say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peers import assert_same_state

import dormant
from compare import assert_same_bits
from pages import blocks, follow_page


def test_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files, *code = blocks("quantize.md")
    assert len(code) == 7
    names: dict[str, Any] = {}
    files.run(names)
    mixtral = transformers.MixtralForCausalLM.from_pretrained("mixtral", dtype=torch.float32)

    code[0].run(names)
    assert "14 layers" in str(names["report"])
    assert "kept lm_head" in str(names["report"])
    first = names["model"]
    theirs = transformers.LlamaForCausalLM.from_pretrained("llama-nf4", dtype=torch.bfloat16)
    assert_same_state(theirs, first)

    code[1].run(names)
    assert str(names["scheme"]) == "nf4, blocks of 128"

    code[2].run(names)
    quantized = [layer.name for layer in names["report"].layers]
    assert len(quantized) == 6
    assert all(name.startswith("model.layers.1.") for name in quantized)

    code[3].run(names)
    assert not dormant.is_lazy(names["mixture"])
    packed = dormant.open_checkpoint("mixtral-nf4", decode=False)
    experts = mixtral.bfloat16().model.layers[0].mlp.experts
    replace_parameter_4bit(experts, "down_proj", compress_statistics=True)
    prefix = "model.layers.0.mlp.experts."
    for name, tensor in experts.state_dict().items():
        if name.startswith("down_proj"):
            assert_same_bits(packed[prefix + name], tensor, name)
    code[4].run(names)
    chosen = [layer.name for layer in names["report"].layers if "experts" in layer.name]
    assert chosen == [f"{prefix}down_proj"]

    code[5].run(names)
    assert_same_state(names["again"], first)

    code[6].run(names)
    layer = names["model"].model.layers[0].mlp.down_proj
    assert layer.weight.dtype is torch.float8_e4m3fn
    assert type(first.model.layers[0].mlp.down_proj) is bitsandbytes.nn.Linear4bit


def test_the_page_about_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = follow_page("experts.md")
    assert dormant.is_lazy(names["large"])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        eager = transformers.MixtralForCausalLM(names["config"])
    finally:
        torch.set_default_dtype(torch.float32)
    theirs = transformers.MixtralForCausalLM.from_pretrained("mixtral", dtype=torch.bfloat16)
    experts = eager.model.layers[1].mlp.experts
    assert_same_bits(theirs.model.layers[1].mlp.experts.down_proj, experts.down_proj)
    assert_same_bits(experts.down_proj[3].detach().float(), names["expert"])
    for name in ("down_proj", "gate_up_proj"):
        replace_parameter_4bit(experts, name, compress_statistics=True)
    expected = experts.state_dict()
    for each in (names["model"], names["again"]):
        packed = each.model.layers[1].mlp.experts.state_dict()
        assert packed.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_same_bits(tensor, packed[name], name)


@pytest.mark.parametrize("name", ["bitsandbytes"])
def test_the_examples_of_a_module(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(f"dormant.quantization.{name}"))
    assert failed == 0
