"""The code of docs/checkpoints.md runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import dormant
from compare import assert_same_bits
from pages import blocks


def test_the_code_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *code, files = blocks("checkpoints.md")
    names: dict[str, Any] = {}
    files.run(names)
    made = dict(names)
    state = safetensors.torch.load_file("llama/model.safetensors")
    for block in code:
        block.run(names)
    assert_same_bits(state["norm.weight"], names["weight"])
    converted = safetensors.torch.load_file(tmp_path / "converted" / "model.safetensors")
    swapped = torch.cat([state["mlp.weight"][3:], state["mlp.weight"][:3]]).half()
    assert_same_bits(swapped, converted["model.mlp.weight"])
    assert not dormant.is_lazy(names["model"])
    assert_same_bits(state["norm.bias"], names["model"].bias.detach())
    summed = names["base_and_differences"]["norm.weight"]
    assert_same_bits(made["part"]["norm.weight"] * 2, summed)
    assert (names["plan"].missing_keys, names["plan"].unexpected_keys) == ((), ("mlp.weight",))
    assert names["step"] == 12
    assert names["rate"] == 0.1
    assert names["lightning"].foreign == ("argparse.Namespace",)
    assert_same_bits(made["training"]["optimizer"]["state"][0]["exp_avg"], names["moments"])
    assert len(names["stack"].sources) == 4
    assert set(names["by_model"]) == set(names["again"].state_dict())
    dormant.materialize(names["mixtral"])
    for name, tensor in names["mixtral"].state_dict().items():
        assert_same_bits(tensor, names["again"].state_dict()[name])
    assert names["opened"].metadata["general.architecture"] == "llama"
    assert len(names["words"]) == 96
    up = names["llama"].model.layers[0].mlp.up_proj.weight.detach()
    assert_same_bits(names["opened"]["blk.0.ffn_up.weight"].clone(), up)
