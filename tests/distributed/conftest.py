"""`run_ranks`, and the imports that the tests here share with the ranks."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))

from jobs.models import Layered
from launch import RankHost, RunRanks


@pytest.fixture(scope="session")
def rank_host() -> Iterator[RankHost]:
    host = RankHost()
    yield host
    host.close()


@pytest.fixture
def run_ranks(rank_host: RankHost, tmp_path: Path) -> RunRanks:
    numbers = itertools.count()

    def run(world: int, job: str, *, seconds: float = 60, **arguments: Any) -> list[Any]:
        folder = tmp_path / f"job{next(numbers)}"
        folder.mkdir()
        return rank_host.run(folder, world, job, seconds, arguments)

    return run


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `Layered`."""
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("layered") / "model.safetensors"
    safetensors.torch.save_file(Layered().state_dict(), path)
    return path
