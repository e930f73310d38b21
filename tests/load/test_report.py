"""The report of a load: where each tensor came from, what was missing, what it cost."""

from __future__ import annotations

import json

import pytest
import torch
from eager_load import Saver, eager, lazy, state_of
from loaded_modules import Plain, Tied
from torch import nn

import dormant
from dormant.reporting.memory import resident_bytes


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(400, 300)
        self.head = nn.Linear(300, 100)


def origins(report: dormant.Report) -> dict[str, str]:
    return {name: tensor.origin for tensor in report.tensors for name in tensor.names}


def test_it_says_where_each_tensor_came_from(saved: Saver) -> None:
    state = {k: t for k, t in state_of(Layers).items() if k.startswith("body")}
    model = lazy(Layers)
    dormant.materialize(model.get_parameter("head.bias"))
    path = saved(state)
    report = dormant.load(model, path)
    assert origins(report) == {
        "body.weight": "checkpoint",
        "body.bias": "checkpoint",
        "head.weight": "initialized",
        "head.bias": "real",
    }
    files = {name: t.files for t in report.tensors for name in t.names}
    assert files["body.weight"] == (str(path),)
    assert files["head.weight"] == files["head.bias"] == ()


def test_a_real_tensor_that_is_written_comes_from_the_checkpoint(saved: Saver) -> None:
    state = {k: t for k, t in state_of(Layers).items() if k.startswith("body")}
    report = dormant.load(eager(Layers), saved(state))
    assert origins(report) == {
        "body.weight": "checkpoint",
        "body.bias": "checkpoint",
        "head.weight": "real",
        "head.bias": "real",
    }


def test_values_that_cannot_be_read_lazily_come_from_the_checkpoint_too() -> None:
    class Marked(torch.Tensor):
        pass

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(3))

    state = state_of(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)))
    state["0.weight"] = state["0.weight"].as_subclass(Marked)
    state["0.bias"] = torch.ones(1).expand(3)
    report = dormant.load(lazy(build), state)
    assert origins(report) == dict.fromkeys(state, "checkpoint")


def test_it_lists_what_model_and_checkpoint_do_not_share(saved: Saver) -> None:
    state = state_of(Layers)
    del state["head.weight"]
    state["surplus"] = torch.ones(3)
    state["body.bias"] = torch.ones(7)
    report = dormant.load(lazy(Layers), saved(state), unexpected="ignore", mismatched="init")
    assert report.missing_keys == ("head.weight",)
    assert report.unexpected_keys == ("surplus",)
    assert report.mismatched_keys == (("body.bias", (7,), (300,)),)


def test_what_is_loaded_is_never_initialized(saved: Saver) -> None:
    state = state_of(Layers)
    for dtype in (torch.float32, torch.bfloat16):
        path = saved({k: t.to(dtype) for k, t in state.items()})
        report = dormant.load(lazy(Layers), path)
        assert report.initialized_bytes == 0
        assert report.read_bytes == sum(t.nbytes for t in state.values())


def test_only_what_is_missing_is_initialized(saved: Saver) -> None:
    state = {k: t for k, t in state_of(Layers).items() if k.startswith("body")}
    report = dormant.load(lazy(Layers), saved(state))
    assert report.read_bytes == sum(t.nbytes for t in state.values())
    head = eager(Layers).get_submodule("head")
    assert report.initialized_bytes == sum(p.nbytes for p in head.parameters())


@pytest.mark.parametrize(("mmap", "way"), [("auto", "mapped"), ("never", "tiles")])
def test_it_says_which_tensors_are_mapped(mmap: str, way: str, saved: Saver) -> None:
    report = dormant.load(lazy(Layers), saved(state_of(Layers)), mmap=mmap)  # type: ignore[arg-type]
    assert {tensor.way for tensor in report.tensors} == {way}


def test_nothing_is_mapped_that_is_cast(saved: Saver) -> None:
    state = {k: t.half() for k, t in state_of(Layers).items()}
    report = dormant.load(lazy(Layers), saved(state))
    assert {tensor.way for tensor in report.tensors} == {"tiles"}


def test_a_tied_tensor_counts_once(saved: Saver) -> None:
    state = state_of(Tied)
    del state["head.weight"]
    report = dormant.load(lazy(Tied), saved(state))
    assert report.missing_keys == ()
    assert report.count("checkpoint") == 3
    names = next(t.names for t in report.tensors if "head.weight" in t.names)
    assert "embedding.weight" in names


def test_a_load_that_materializes_nothing_reads_nothing(saved: Saver) -> None:
    report = dormant.load(lazy(Layers), saved(state_of(Layers)), materialize=False)
    assert report.read_bytes == report.initialized_bytes == 0
    assert report.count("real") == 0


def test_materializing_later_reports_the_checkpoint(saved: Saver) -> None:
    path = saved(state_of(Layers))
    model = lazy(Layers)
    dormant.load(model, path, materialize=False)
    report = dormant.materialize(model)
    assert set(origins(report).values()) == {"checkpoint"}
    assert {file for tensor in report.tensors for file in tensor.files} == {str(path)}
    assert report.initialized_bytes == 0


def test_it_prints_and_becomes_json(saved: Saver, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(state_of(Plain))
    report = dormant.load(lazy(Plain), path, verbose=True)
    text = capsys.readouterr().out
    assert text == f"{report}\n"
    assert "checkpoint" in text
    assert "from files" in text
    assert json.loads(json.dumps(report.to_dict()))["read_bytes"] == report.read_bytes
    assert report.bytes_per_second > 0
    assert (report.peak_memory or 0) > 0 or resident_bytes() is None


def test_progress_counts_bytes_from_none_to_all(saved: Saver) -> None:
    state = {k: t.half() for k, t in state_of(Layers).items()}
    path = saved(state)
    steps: list[tuple[int, int]] = []
    model = lazy(Layers)
    dormant.load(model, path, progress=lambda done, total: steps.append((done, total)))
    final = sum(parameter.nbytes for parameter in model.parameters())
    assert steps[0] == (0, final)
    assert steps[-1] == (final, final)
    assert steps == sorted(steps)
