"""`save(format="dcp")` in one process: what torch reads, what is refused, and what survives.

tests/distributed/test_checkpoints.py has several ranks.
"""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import dormant
from compare import assert_same_bits
from failing_calls import At, killed, raised


class Model(nn.Module):
    """Tied, turned, in another memory format, made in tiles and by replay."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.norm = nn.BatchNorm1d(16)
        self.convolution = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(9, 7).t())
        self.orthogonal = nn.Linear(6, 6)
        nn.init.orthogonal_(self.orthogonal.weight)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight


def build(*, lazy: bool = True) -> Model:
    torch.manual_seed(3)
    if not lazy:
        return Model()
    with dormant.lazy_init():
        return Model()


def read_by_torch(folder: Path) -> Any:
    path = folder.with_name(f"{folder.name}.pt")
    dcp_to_torch_save(folder, path)
    return torch.load(path)


def state(value: float) -> dict[str, Any]:
    return {
        "model": {name: torch.full((300,), float(value + i)) for i, name in enumerate("abcd")},
        "step": int(value),
    }


def which(folder: Path) -> float:
    """The value of the state that a folder has, whole, for torch and for dormant."""
    read = read_by_torch(folder)
    value = float(read["model"]["a"][0])
    assert read["step"] == value
    checkpoint = dormant.open_checkpoint(folder, key="model")
    for name, tensor in state(value)["model"].items():
        assert_same_bits(tensor, read["model"][name], name)
        assert_same_bits(tensor, checkpoint[name].clone(), name)
    assert checkpoint.extra["step"] == value
    return value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "real"])
def test_torch_reads_the_values_and_geometry_of_an_eager_model(lazy: bool, tmp_path: Path) -> None:
    model, eager = build(lazy=lazy), build(lazy=False)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 0.5, "ids": [0, 1]}]}
    saved = {"model": model, "optimizer": optimizer, "note": "text"}
    report = dormant.save(saved, tmp_path / "saved", format="dcp", memory_budget="64MiB")
    assert dormant.is_lazy(model) == lazy
    # The tie is written once.
    assert report.count("initialized") == (10 if lazy else 0)
    dcp.save({**saved, "model": eager}, checkpoint_id=tmp_path / "theirs")
    ours, theirs = read_by_torch(tmp_path / "saved"), read_by_torch(tmp_path / "theirs")
    assert ours["note"] == theirs["note"] == "text"
    assert ours["optimizer"]["groups"] == theirs["optimizer"]["groups"]
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor.contiguous(), ours["model"][name], name)
        assert_same_bits(theirs["model"][name], ours["model"][name], name)
    described = [
        pickle.loads((tmp_path / name / ".metadata").read_bytes()) for name in ("saved", "theirs")
    ]
    assert described[0].state_dict_metadata == described[1].state_dict_metadata
    assert described[0].planner_data == described[1].planner_data
    assert described[0].storage_data.keys() == described[1].storage_data.keys()


def test_torch_loads_into_a_model(tmp_path: Path) -> None:
    dormant.save(build(), tmp_path, format="dcp")
    eager = build(lazy=False)
    expected = {name: tensor.clone() for name, tensor in eager.state_dict().items()}
    loaded = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(loaded, checkpoint_id=tmp_path)
    for name, tensor in expected.items():
        assert_same_bits(tensor.contiguous(), loaded[name].contiguous(), name)


@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_what_was_saved_is_read(source: str, tmp_path: Path) -> None:
    eager = build(lazy=False)
    if source == "ours":
        dormant.save(build(), tmp_path, format="dcp")
    else:
        dcp.save(dict(eager.state_dict()), checkpoint_id=tmp_path)
    checkpoint = dormant.open_checkpoint(tmp_path)
    assert list(checkpoint) == list(eager.state_dict())
    for name, tensor in eager.state_dict().items():
        assert dormant.is_lazy(checkpoint[name]), name
        assert_same_bits(tensor.contiguous(), checkpoint[name].clone(), name)
    verified = checkpoint.verify(progress=False)
    assert verified.tensors == len(checkpoint)
    assert verified.unchecked_nbytes == (tmp_path / ".metadata").stat().st_size
    loaded = build()
    dormant.load(loaded, tmp_path, progress=False)
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, loaded.state_dict()[name], name)


def test_ties_of_one_place_are_ties_again(tmp_path: Path) -> None:
    dormant.save(build(), tmp_path, format="dcp")
    opened = dict(dormant.open_checkpoint(tmp_path))
    assert opened["embedding.weight"].data_ptr() == opened["head.weight"].data_ptr()


def test_a_lazy_checkpoint_is_converted_without_being_read_whole(tmp_path: Path) -> None:
    dormant.save(build(), tmp_path / "first", format="dcp")
    checkpoint = dormant.open_checkpoint(tmp_path / "first")
    dormant.save(dict(checkpoint), tmp_path / "model.safetensors")
    dormant.save(
        dict(dormant.open_checkpoint(tmp_path / "model.safetensors")),
        tmp_path / "second",
        format="dcp",
    )
    for name, tensor in build(lazy=False).state_dict().items():
        kept = "embedding.weight" if name == "head.weight" else name
        second = dormant.open_checkpoint(tmp_path / "second")
        assert_same_bits(tensor.contiguous(), second[kept].clone(), name)


def test_saving_again_leaves_nothing_of_the_earlier_checkpoint(tmp_path: Path) -> None:
    for value, number in [(1, 0), (2, 1), (3, 0)]:
        dormant.save(state(value), tmp_path, format="dcp")
        assert names(tmp_path) == {".metadata", f"__0_{number}.distcp"}
        assert which(tmp_path) == value
        for file in tmp_path.parent.glob("*.pt"):
            file.unlink()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_kill_at_any_call_leaves_one_of_the_two_checkpoints_whole(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    dormant.save(state(1), tmp_path / "warm up", format="dcp")
    found, n = [], 0
    while True:
        n += 1
        folder = tmp_path / str(n)
        dormant.save(state(1), folder, format="dcp")
        child = os.fork()
        if child == 0:
            try:
                with At(n, killed, links).patched(monkeypatch):
                    dormant.save(state(50), folder, format="dcp", progress=False)
                os._exit(0)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        found.append(which(folder))
        if n % 3 == 0:  # whatever a killed process left, the next save is right
            dormant.save(state(7), folder, format="dcp")
            assert which(folder) == 7
            assert len(names(folder)) == 2
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    assert n > 5
    assert found[0] == 1
    assert found[-1] == 50


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "EIO"), KeyboardInterrupt()], ids=["EIO", "interrupt"]
)
def test_an_error_in_any_call_leaves_one_of_the_two_checkpoints(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, at, n = tmp_path / "saved", None, 0
    while at is None or at.calls >= n:
        n += 1
        dormant.save(state(1), folder, format="dcp")
        assert len(names(folder)) == 2, n  # what the save before could not remove is gone
        failed = False
        with At(n, raised(error)).patched(monkeypatch) as at:
            try:
                dormant.save(state(50), folder, format="dcp", progress=False)
            except type(error):
                failed = True
        value = which(folder)
        assert value == (1 if failed else 50) or isinstance(error, KeyboardInterrupt), n
        # What cannot be removed is left for the next save.
        assert len([name for name in names(folder) if not name.endswith(".tmp")]) == 2, n
    assert n > 5


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("m.pt", "dcp", "names a file"),
        ("m.safetensors", "torch", "names a file"),
        ("folder", "torch", "names a folder"),
        ("folder", "zip", "format must be one of"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(
    path: str, format: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        dormant.save(build(), tmp_path / path, format=format)
    assert names(tmp_path) == set()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    dormant.save(state(1), tmp_path / "saved", format="dcp")
    before = names(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"(?s)layout.*'sparse'"):
        dormant.save({"sparse": torch.ones(3).to_sparse()}, tmp_path / "saved", format="dcp")
    with pytest.raises(ValueError, match=r"(?s)device 'meta'.*'meta'"):
        dormant.save({"meta": torch.ones(3, device="meta")}, tmp_path / "saved", format="dcp")
    with pytest.raises(ValueError, match="memory_budget=64 bytes is too small"):
        dormant.save(build(), tmp_path / "saved", format="dcp", memory_budget=64)
    assert names(tmp_path / "saved") == before
    assert which(tmp_path / "saved") == 1


def test_a_read_only_checkpoint_is_refused(tmp_path: Path) -> None:
    dormant.save(state(1), tmp_path, format="dcp")
    (tmp_path / ".metadata").chmod(0o444)
    if os.access(tmp_path / ".metadata", os.W_OK):
        pytest.skip("this user may write to everything")
    with pytest.raises(PermissionError):
        dormant.save(state(2), tmp_path, format="dcp")
