"""Folders of torch.distributed.checkpoint behind URLs: parts of several ranks, failures, lies."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import dormant
from compare import assert_same_bits
from range_server import Answer, Request, serving

WEIGHT = torch.randn(700, 900)
STATE = {
    "model": {"bias": torch.randn(33), "scale": torch.tensor(2.0), "steps": torch.arange(10)},
    "step": 7,
}
NAMES = {"model.weight", "model.bias", "model.scale", "model.steps"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As two ranks leave it: each has written its rows of the weight."""
    folder = tmp_path_factory.mktemp("saved")
    halves = {"top": WEIGHT[:300].clone(), "bottom": WEIGHT[300:].clone()}
    dcp.save({**STATE, **halves}, checkpoint_id=folder, no_dist=True)
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    assert metadata.planner_data is not None
    chunks = []
    for name, first in (("top", 0), ("bottom", 300)):
        del metadata.state_dict_metadata[name]
        del metadata.planner_data[name]
        (index,) = (each for each in metadata.storage_data if each.fqn == name)
        place = metadata.storage_data.pop(index)
        offsets = torch.Size((first, 0))
        metadata.storage_data[MetadataIndex("model.weight", offsets, len(chunks))] = place
        chunks.append(ChunkStorageMetadata(offsets, halves[name].size()))
    properties = TensorProperties(dtype=torch.float32)
    metadata.state_dict_metadata["model.weight"] = TensorStorageMetadata(
        properties, WEIGHT.size(), chunks
    )
    metadata.planner_data["model.weight"] = ("model", "weight")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def _assert_holds(checkpoint: Any) -> None:
    assert set(checkpoint) == NAMES
    state = dict(checkpoint)
    assert all(dormant.is_lazy(tensor) for tensor in state.values())
    dormant.materialize(state)
    assert_same_bits(WEIGHT, state["model.weight"])
    for name, tensor in STATE["model"].items():
        assert_same_bits(tensor, state[f"model.{name}"], name)


@pytest.mark.parametrize("path", ["", "/", "/.metadata"])
def test_it_holds_what_the_folder_holds(path: str, folder: Path) -> None:
    with serving(folder) as server:
        checkpoint = dormant.open_checkpoint(server.url + path)
        assert checkpoint.extra == {"step": 7}
        _assert_holds(checkpoint)
        assert checkpoint.files[0] == f"{server.url}/.metadata"


def test_load_reads_each_byte_of_the_tensors_once(folder: Path) -> None:
    with serving(folder) as server:
        model = torch.nn.Linear(900, 700, bias=False)
        dormant.load(model, server.url, rename={"model.": ""}, unexpected="ignore")
        assert_same_bits(WEIGHT, model.weight.detach())
        (data,) = (name for name in server.files if name.endswith(".distcp"))
        # The directories of the archives are looked up, and some bytes around them.
        assert WEIGHT.nbytes <= server.nbytes(data) < WEIGHT.nbytes + (1 << 19)


def test_a_filesystem_that_can_be_listed(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/saved/{path.name}", path.read_bytes())
    try:
        _assert_holds(dormant.open_checkpoint("memory://saved"))
    finally:
        memory.rm("/saved", recursive=True)


def test_safetensors_of_several_ranks(tmp_path: Path) -> None:
    writer = dcp.HuggingFaceStorageWriter(path=str(tmp_path), save_distributed=True)
    dcp.save({"weight": WEIGHT}, storage_writer=writer, no_dist=True)
    memory = fsspec.filesystem("memory")
    names = [path.name for path in tmp_path.glob("*.safetensors")]
    assert names
    for name in names:
        memory.pipe(f"/shards/{name}", (tmp_path / name).read_bytes())
    try:
        checkpoint = dormant.open_checkpoint("memory://shards")
        weight = checkpoint["weight"]
        assert dormant.is_lazy(weight)
        dormant.materialize(weight)
        assert_same_bits(WEIGHT, weight)
    finally:
        memory.rm("/shards", recursive=True)


def test_a_data_file_that_is_absent_is_named(folder: Path) -> None:
    files = {".metadata": (folder / ".metadata").read_bytes()}
    with serving(files) as server, pytest.raises(FileNotFoundError, match=r"distcp.*404"):
        dormant.open_checkpoint(server.url)


def test_what_fails_for_a_time_is_tried_again(folder: Path) -> None:
    with serving(folder) as server:

        def fails_first(request: Request) -> Answer | None:
            return Answer(status=503) if request.number == 0 else None

        server.misbehave = fails_first
        _assert_holds(dormant.open_checkpoint(f"{server.url}/.metadata"))


def test_an_error_names_the_tensor_and_leaves_it_lazy(folder: Path) -> None:
    with serving(folder) as server:
        checkpoint = dormant.open_checkpoint(server.url)
        weight = checkpoint["model.weight"]
        server.misbehave = lambda request: Answer(status=404)
        with pytest.raises(OSError, match=r"reading bytes .*'model\.weight'"):
            dormant.materialize(weight)
        assert dormant.is_lazy(weight)
        server.misbehave = lambda request: None
        dormant.materialize(weight)
        assert_same_bits(WEIGHT, weight)


def test_a_file_that_changed_is_noticed(folder: Path) -> None:
    with serving(folder) as server:
        weight = dormant.open_checkpoint(server.url)["model.weight"]
        (data,) = (name for name in server.files if name.endswith(".distcp"))
        server.files[data] = server.files[data][::-1]
        server.tags[data] = '"another"'
        with pytest.raises(ValueError, match="replaced later"):
            dormant.materialize(weight)
        assert dormant.is_lazy(weight)


def test_names_that_lead_out_of_the_folder_are_not_requested(folder: Path) -> None:
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../secret"
    with serving({".metadata": pickle.dumps(metadata)}) as server:
        with pytest.raises(ValueError, match=r"\.\./secret"):
            dormant.open_checkpoint(server.url)
        assert {request.name for request in server.requests} <= {
            ".metadata",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        }
