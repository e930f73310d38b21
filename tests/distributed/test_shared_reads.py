"""Ranks that need the same bytes of a checkpoint: each byte is read once, and all have all bits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import SEED, Large, Layered
from jobs.shared import MODELS
from launch import RunRanks
from torch import nn

from compare import assert_same_bits
from every_format import FORMATS, Packable
from range_server import serving

HERE = Path(__file__).parent


def eager_model(kind: str) -> nn.Module:
    torch.manual_seed(SEED)
    return MODELS[kind]()


def write(kind: str, path: Path, dtype: torch.dtype | None = None) -> int:
    """A checkpoint of other values, which lacks some; returns the bytes they take in the model."""
    state = {}
    nbytes = 0
    torch.manual_seed(1)
    for name, tensor in eager_model(kind).state_dict().items():
        if name in ("missing", "tied.head.weight"):  # the latter is the embedding
            continue
        floating = tensor.is_floating_point()
        other = torch.randn(tensor.shape) if floating else torch.arange(tensor.numel())
        state[name] = other.to(dtype if dtype is not None and floating else tensor.dtype)
        nbytes += tensor.nbytes
    safetensors.torch.save_file(state, path)
    return nbytes


def eager_state(kind: str, path: Path) -> dict[str, torch.Tensor]:
    model = eager_model(kind)
    model.load_state_dict(safetensors.torch.load_file(path), strict=False)
    return tensors_of(model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["own dtype", "cast"])
@pytest.mark.parametrize("deferred", [False, True], ids=["load", "materialize"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_byte_is_read_once_for_all(
    run_ranks: RunRanks, tmp_path: Path, world: int, deferred: bool, dtype: torch.dtype | None
) -> None:
    path = tmp_path / "model.safetensors"
    nbytes = write("Shapes", path, dtype)
    ranks = run_ranks(
        world, "shared:load", kind="Shapes", way="DDP", path=str(path), deferred=deferred
    )
    state = eager_state("Shapes", path)
    for rank, result in enumerate(ranks):
        where = f"rank {rank}"
        assert result["lazy before"], where
        assert_came_to_life(result, where)
        assert_same_tensors(state, result["local"], where)
        for name, origin in result["origins"].items():
            drawn = name in ("missing", "steps")
            assert origin == ("initialized" if drawn else "checkpoint"), (where, name)
            assert bool(result["files"][name]) != drawn
        done, total = result["steps"][-1]
        assert done == total > 0
    if world > 1:
        assert sum(result["read"] for result in ranks) == nbytes
        assert all(result["read"] < nbytes * 0.75 for result in ranks)
        assert all("mapped" not in result["ways"].values() for result in ranks)


@pytest.mark.parametrize("tick", [1, 512, 1 << 20])
@pytest.mark.parametrize(
    ("world", "way", "readers"),
    [
        (2, "replicated", 2),
        (4, "replicated", 4),
        (4, "replicated twice", 4),
        (4, "HSDP", 2),
        (4, "DP x TP", 2),
        (4, "TP x DP", 2),
        (2, "HSDP", 2),
        (4, "FSDP", 1),
        (2, "wrapped DDP", 2),
    ],
)
def test_replicated_parts_are_read_once(
    run_ranks: RunRanks, tmp_path: Path, world: int, way: str, readers: int, tick: int
) -> None:
    path = tmp_path / "model.safetensors"
    write("Layered", path)
    ranks = run_ranks(
        world, "shared:compared", kind="Layered", way=way, path=str(path), tick=tick
    )
    for rank, result in enumerate(ranks):
        where = f"rank {rank}"
        assert_came_to_life(result, where)
        assert_same_tensors(result["without"], result["local"], where)
        assert_same_tensors(result["without"], result["later"]["local"], where)
    whole = sum(tensor.nbytes for result in ranks for tensor in result["local"].values())
    assert sum(result["read"] for result in ranks) * readers == whole
    assert sum(result["later"]["read"] for result in ranks) * readers == whole
