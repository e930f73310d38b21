"""The rules of `load` as one table of cases, which the C++ tests run, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dormant

CASES = json.loads((Path(__file__).parent / "cases" / "names.json").read_text())["cases"]
ERRORS = {"KeyError": KeyError, "ValueError": ValueError}


def values(described: dict[str, Any], first: float) -> torch.Tensor:
    sizes = described["sizes"]
    dtype = getattr(torch, described.get("dtype", "float32"))
    numbers = torch.arange(torch.Size(sizes).numel(), dtype=torch.float64) * 1.25 + first
    return numbers.to(dtype).reshape(sizes)


def saved(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    firsts: dict[str, float] = {}
    tensors = {}
    for place, described in enumerate(case["checkpoint"]):
        name = described["name"]
        firsts[name] = firsts.get(described.get("first"), 100.0 * (place + 1))
        tensors[name] = values(described, firsts[name])
    return tensors


def build(case: dict[str, Any]) -> torch.nn.Module:
    module = torch.nn.Module()
    for place, described in enumerate(case["model"]):
        if "tied" in described:
            tensor = getattr(module, described["tied"])
        elif "view" in described:
            tensor = getattr(module, described["view"]).view(described["sizes"])
        else:
            dtype = getattr(torch, described.get("dtype", "float32"))
            tensor = torch.full(described["sizes"], -place - 1, dtype=dtype)
        module.register_buffer(described["name"], tensor)
    return module


@pytest.mark.parametrize("is_lazy", [True, False], ids=["lazy", "real"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_case(case: dict[str, Any], is_lazy: bool, tmp_path: Path) -> None:
    tensors = saved(case)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    if is_lazy:
        with dormant.lazy_init():
            model = build(case)
    else:
        model = build(case)
    before = build(case).state_dict()
    options = {name: case[name] for name in ("unexpected", "mismatched", "rename") if name in case}
    options["missing"] = case.get("missing", "init")

    if "error" in case:
        with pytest.raises(ERRORS[case["error"]]) as raised:
            dormant.load(model, path, **options)
        for name in case["names"]:
            assert name in str(raised.value)
        assert all(dormant.is_lazy(each) == is_lazy for each in model.buffers())
        dormant.materialize(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        return

    report = dormant.load(model, path, **options)
    found = model.state_dict()
    assert found.keys() == {*case.get("loaded", ()), *case.get("left", ())}
    for name, source in case.get("loaded", {}).items():
        expected = tensors[source].to(found[name].dtype).reshape(found[name].shape)
        assert torch.equal(found[name], expected), name
    for name in case.get("left", ()):
        assert torch.equal(found[name], before[name]), name
    assert list(report.unexpected_keys) == case.get("ignored", [])
