"""Files on a filesystem where each read takes its time: FUSE, with a wait before each answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from compare import assert_same_bits
from slow_filesystem import mounted

STATE = {f"layers.{i}": torch.randn(1_000_000) for i in range(16)}  # 64 MB
_WAIT = 0.02


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    safetensors.torch.save_file(STATE, folder / "model.safetensors")
    with mounted(folder, tmp_path / "disk", _WAIT) as is_mounted:
        if not is_mounted:
            pytest.skip("the system does not let this process mount a filesystem")
        yield tmp_path / "disk"


def test_many_large_reads_are_under_way_at_a_time(disk: Path) -> None:
    state = dict(dormant.open_checkpoint(disk / "model.safetensors"))
    begin = time.perf_counter()
    dormant.materialize(state)
    seconds = time.perf_counter() - begin
    for name, tensor in STATE.items():
        assert_same_bits(tensor, state[name], name)
    # The kernel asks for 128 KiB at a time: one after the other would be 490 waits, 9.8 s.
    assert seconds < 5
    # A mapping's page faults would wait for the disk one after the other.
    assert str(disk) not in Path("/proc/self/maps").read_text()


def test_a_file_that_changes_is_noticed_as_on_any_disk(disk: Path, tmp_path: Path) -> None:
    tensor = dormant.open_checkpoint(disk / "model.safetensors")["layers.0"]
    assert dormant.is_lazy(tensor)
    dormant.materialize(tensor, memory_budget=1 << 20)
    assert_same_bits(STATE["layers.0"], tensor)
