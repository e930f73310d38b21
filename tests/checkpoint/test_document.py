"""The code of docs/checkpoints.md runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import gguf
import pytest
import safetensors.torch
import torch
from written import PARTS, write, write_set

import dormant
from compare import assert_same_bits
from gguf_models import CASES, write_model
from pages import run_page


def test_the_code_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = {"norm.weight": torch.randn(8), "norm.bias": torch.randn(8)}
    state = {**norm, "mlp.weight": torch.randn(6, 8)}
    write(state, tmp_path / "llama" / "model.safetensors")
    write_set(tmp_path / "base", "consolidated.{:02}.pth")
    write_set(tmp_path / "finetuned", "consolidated.{:02}-of-03.model-diff.pth")
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    training: dict[str, Any] = {"model": module.state_dict(), "ema": module.state_dict()}
    training |= {"step": 12, "optimizer": optimizer.state_dict()}
    torch.save(training, tmp_path / "training.pt")
    tiny = next(case for case in CASES if case.architecture == "llama")
    (tmp_path / "gguf").mkdir()
    written = write_model(tiny, tmp_path / "gguf", gguf.GGMLQuantizationType.Q8_0)
    written.rename(tmp_path / "tiny.gguf")
    lightning = {"state_dict": module.state_dict(), "hyper_parameters": Namespace(lr=0.1)}
    torch.save(lightning, tmp_path / "lightning.ckpt")
    monkeypatch.chdir(tmp_path)
    names = run_page("checkpoints.md")
    assert_same_bits(state["norm.weight"], names["weight"])
    converted = safetensors.torch.load_file(tmp_path / "converted" / "model.safetensors")
    swapped = torch.cat([state["mlp.weight"][3:], state["mlp.weight"][:3]]).half()
    assert_same_bits(swapped, converted["model.mlp.weight"])
    assert not dormant.is_lazy(names["model"])
    assert_same_bits(norm["norm.bias"], names["model"].bias.detach())
    summed = names["base_and_differences"]["norm.weight"]
    assert_same_bits(PARTS[0]["norm.weight"] * 2, summed)
    assert (names["plan"].missing_keys, names["plan"].unexpected_keys) == ((), ("mlp.weight",))
    assert names["step"] == 12
    assert names["rate"] == 0.1
    assert names["lightning"].foreign == ("argparse.Namespace",)
    assert_same_bits(training["optimizer"]["state"][0]["exp_avg"], names["moments"])
    assert len(names["stack"].sources) == 4
    assert set(names["by_model"]) == set(names["again"].state_dict())
    dormant.materialize(names["mixtral"])
    for name, tensor in names["mixtral"].state_dict().items():
        assert_same_bits(tensor, names["again"].state_dict()[name])
    assert names["opened"].metadata["general.architecture"] == "llama"
    assert len(names["words"]) == 96
    up = names["llama"].model.layers[0].mlp.up_proj.weight.detach()
    assert_same_bits(names["opened"]["blk.0.ffn_up.weight"].clone(), up)
