"""Folders of torch.distributed.checkpoint: torch reads what ranks save, and the other way."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.checkpoints import Wide
from jobs.models import eager_model
from launch import RunRanks
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import dormant
from compare import assert_same_bits

WAYS = [
    ("TiedModel", "rows", 1),
    ("TiedModel", "rows", 2),
    ("TiedModel", "rows", 4),
    ("TiedModel", "columns", 2),
    ("TiedModel", "replicas", 4),
    ("TwoLayers", "two dimensions", 4),
    ("TwoLayers", "whole", 2),
]


def state_of(kind: str) -> dict[str, torch.Tensor]:
    return dict(eager_model(kind).state_dict())


def read_by_torch(folder: Path) -> dict[str, Any]:
    """What torch makes of a folder; the order of names is that in which ranks wrote them."""
    dcp_to_torch_save(folder, folder.with_suffix(".pt"))
    found: dict[str, Any] = torch.load(folder.with_suffix(".pt"))
    return found


def in_order(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    assert tensors.keys() == set(names)
    return {name: tensors[name] for name in names}


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "real"])
@pytest.mark.parametrize(("kind", "way", "world"), WAYS)
def test_torch_reads_what_ranks_save(
    run_ranks: RunRanks, kind: str, way: str, world: int, lazy: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    results = run_ranks(world, "checkpoints:save", kind=kind, way=way, path=str(folder), lazy=lazy)
    expected = state_of(kind)
    assert all(result["same"] for result in results)
    assert any(result["lazy"] for result in results) == lazy
    assert_same_tensors(expected, in_order(read_by_torch(folder), expected), way)
    # Every element is written once, however many ranks have it; ties of a rank are one.
    whole = sum(tensor.nbytes for tensor in expected.values())
    tied = expected["head.weight"].nbytes if kind == "TiedModel" else 0
    assert whole - tied <= sum(result["nbytes"] for result in results) <= whole
    names = {path.name for path in folder.iterdir()}
    assert names <= {".metadata", *(f"__{rank}_0.distcp" for rank in range(world))}
    for result in run_ranks(
        world, "checkpoints:load_by_torch", kind=kind, way=way, path=str(folder)
    ):
        assert_same_tensors(tensors_of(eager_model(kind)), result["gathered"], way)


@pytest.mark.parametrize(("kind", "way", "world"), WAYS)
def test_what_torch_saves_is_read(
    run_ranks: RunRanks, kind: str, way: str, world: int, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    run_ranks(world, "checkpoints:save_by_torch", kind=kind, way=way, path=str(folder))
    expected = read_by_torch(folder)
    checkpoint = dormant.open_checkpoint(folder)
    flat = {f"model.{name}": tensor for name, tensor in expected["model"].items()}
    state = expected["optim"]["state"]
    for name, facts in state.items():
        flat |= {f"optim.state.{name}.{key}": value for key, value in facts.items()}
    assert checkpoint.keys() == flat.keys()
    for name, tensor in flat.items():
        assert dormant.is_lazy(checkpoint[name]), name
        assert_same_bits(tensor, checkpoint[name].clone(), name)
    extra = checkpoint.extra
    assert extra["step"] == 7
    assert extra["optim"]["param_groups"] == expected["optim"]["param_groups"]
    inner = dormant.open_checkpoint(folder, key="model")
    assert_same_tensors(expected["model"], in_order(inner, expected["model"]), "key='model'")
    assert_same_bits(
        next(iter(next(iter(state.values())).values())),
        next(iter(next(iter(inner.extra["optim"]["state"].values())).values())).clone(),
        "an optimizer's state beside the model",
    )
    assert (
        checkpoint.verify(progress=False).unchecked_nbytes == (folder / ".metadata").stat().st_size
    )
    # `load` finds the model in what was saved.
    for result in run_ranks(world, "checkpoints:load", kind=kind, way=way, path=str(folder)):
        assert_came_to_life(result, way)
        found = {name: expected["model"][name] for name in result["gathered"]}
        assert_same_tensors(found, result["gathered"], way)
    model = eager_model(kind)
    dormant.load(model, folder, progress=False)
    names = model.state_dict()
    assert_same_tensors(in_order(expected["model"], names), dict(names), "whole")


@pytest.mark.parametrize(("kind", "way"), [("TwoLayers", "two dimensions"), ("Wide", "columns")])
def test_parts_in_safetensors_are_read(
    run_ranks: RunRanks, kind: str, way: str, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    run_ranks(4, "checkpoints:save_safetensors", kind=kind, way=way, path=str(folder))
    torch.manual_seed(5)
    expected = tensors_of(Wide() if kind == "Wide" else eager_model(kind))
    assert_same_tensors(expected, in_order(dormant.open_checkpoint(folder), expected), way)
    for result in run_ranks(2, "checkpoints:load", kind=kind, way="rows", path=str(folder)):
        assert_same_tensors(expected, result["gathered"], "loaded")


def test_dividing_anew_reads_each_byte_once(run_ranks: RunRanks, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = tensors_of(Wide())
    nbytes = sum(tensor.nbytes for tensor in expected.values())
    earlier = tmp_path / "4 columns"
    run_ranks(4, "checkpoints:save", kind="Wide", way="columns", path=str(earlier))
    for world, way in [(2, "rows"), (1, "rows"), (4, "two dimensions"), (2, "columns")]:
        results = run_ranks(world, "checkpoints:load", kind="Wide", way=way, path=str(earlier))
        for result in results:
            assert_same_tensors(expected, result["gathered"], f"{world} {way}")
        # Beside the elements: the pickle of each part, the metadata, and libraries' own reads.
        read = sum(result["read"] for result in results)
        assert nbytes <= read <= nbytes + world * 150_000, (world, way)
        earlier = tmp_path / f"{world} {way}"
        run_ranks(world, "checkpoints:save", kind="Wide", way=way, path=str(earlier))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_leaves_the_earlier_checkpoint(
    run_ranks: RunRanks, failing: int, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    run_ranks(2, "checkpoints:save", kind="TwoLayers", way="rows", path=str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for rank, result in enumerate(
        run_ranks(2, "checkpoints:fail", kind="TiedModel", path=str(folder), failing=failing)
    ):
        assert result["errno"] == 28
        assert result["lazy"] > 0
        assert rank == failing or f"rank {failing} failed" in result["message"]
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    run_ranks(2, "checkpoints:save", kind="TiedModel", way="rows", path=str(folder))
    assert {path.name for path in folder.iterdir()} == {
        ".metadata",
        "__0_1.distcp",
        "__1_1.distcp",
    }
    expected = state_of("TiedModel")
    assert_same_tensors(expected, in_order(read_by_torch(folder), expected), "after it failed")


def test_the_metadata_is_that_of_torch(run_ranks: RunRanks, tmp_path: Path) -> None:
    for name in ("save", "save_by_torch"):
        arguments = {"kind": "TiedModel", "way": "rows", "path": str(tmp_path / name)}
        run_ranks(4, f"checkpoints:{name}", **arguments)
    ours, theirs = (
        pickle.loads((tmp_path / name / ".metadata").read_bytes())
        for name in ("save", "save_by_torch")
    )
    assert ours.version == theirs.version
    assert ours.storage_data.keys() == {
        index
        if index.fqn is None
        else type(index)(index.fqn.removeprefix("model."), index.offset, index.index)
        for index in theirs.storage_data
        if index.fqn.startswith("model.")
    }
    for name, described in ours.state_dict_metadata.items():
        assert described == theirs.state_dict_metadata[f"model.{name}"], name
