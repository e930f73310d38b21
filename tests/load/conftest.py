"""Checkpoints of every kind, from the state that they shall hold."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))

from eager_load import Saver, State


def _contiguous(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _sharded(state: State, folder: Path) -> Path:
    """Three files and their index, as transformers names them."""
    folder.mkdir()
    shards: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for number, (name, tensor) in enumerate(_contiguous(state).items()):
        shards[number % 3][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-00003.safetensors"
        safetensors.torch.save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Saver:
    """Saves a state as a safetensors file and returns its path."""
    numbers = itertools.count()

    def save(state: State) -> Path:
        path = tmp_path / f"saved{next(numbers)}.safetensors"
        safetensors.torch.save_file(_contiguous(state), path, metadata={"format": "pt"})
        return path

    return save


@pytest.fixture(params=["mapping", "safetensors", "sharded", "torch zip", "torch legacy"])
def saved_any_way(request: pytest.FixtureRequest, tmp_path: Path) -> Saver:
    """Turns a state into what `load` takes: a mapping, or the path of a file or folder."""

    def save(state: State) -> Any:
        if request.param == "mapping":
            return _contiguous(state)
        if request.param == "sharded":
            return _sharded(state, tmp_path / "sharded")
        if request.param == "safetensors":
            path = tmp_path / "whole.safetensors"
            safetensors.torch.save_file(_contiguous(state), path)
            return path
        path = tmp_path / "whole.pt"
        torch.save(dict(state), path, _use_new_zipfile_serialization=request.param == "torch zip")
        return path

    return save
