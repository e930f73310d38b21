"""A checkpoint is a mapping of lazy tensors; opening it reads none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from written import STATE, write

import dormant
from compare import assert_same_bits


def test_it_is_a_mapping(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    assert sorted(checkpoint) == sorted(STATE)
    assert len(checkpoint) == 4
    assert "steps" in checkpoint
    assert "other" not in checkpoint
    assert checkpoint.get("other") is None
    assert checkpoint == checkpoint
    assert checkpoint != dormant.open_checkpoint(path)
    assert {checkpoint: 1}
    text = repr(checkpoint)
    assert str(path) in text
    assert "4 tensors" in text


def test_an_unknown_name_suggests_similar_ones(path: Path) -> None:
    with pytest.raises(KeyError, match=r"no tensor 'layer\.wieght'; similar names: \['layer\.we"):
        _ = dormant.open_checkpoint(path)["layer.wieght"]


def test_entries_and_metadata_cannot_be_changed(path: Path) -> None:
    checkpoint: Any = dormant.open_checkpoint(path)
    with pytest.raises(TypeError):
        checkpoint.entries["x"] = None
    with pytest.raises(TypeError):
        checkpoint.metadata["x"] = None


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors", metadata={"made by": "hand"})
    assert dormant.open_checkpoint(tmp_path).metadata == {"made by": "hand"}


def bytes_read() -> int:
    """What this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_opening_reads_no_tensor_and_a_part_reads_its_own_bytes(tmp_path: Path, name: str) -> None:
    value = torch.randn(2000, 2000)
    file = write({"a": value, "b": value.half()}, tmp_path / name)
    before = bytes_read()
    tensor = dormant.open_checkpoint(file)["a"]
    assert bytes_read() - before < 100_000
    part = tensor[100:200].to(torch.float64)
    assert bytes_read() - before < 100_000
    dormant.materialize(part)
    # The part has 800,000 bytes in the file, the tensor 16,000,000.
    assert bytes_read() - before < 2_000_000
    assert_same_bits(value[100:200].double(), part)


def test_materialize_shows_a_file_in_place_or_copies_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    value = torch.randn(64, 33)
    safetensors.torch.save_file({"value": value}, path)
    for mmap, way in (("auto", "mapped"), ("always", "mapped"), ("never", "tiles")):
        tensor = dormant.open_checkpoint(path)["value"]
        report = dormant.materialize(tensor, mmap=mmap)  # type: ignore[arg-type]
        assert [each.way for each in report.tensors] == [way]
        assert_same_bits(value, tensor)
    with pytest.raises(ValueError, match="mmap"):
        dormant.materialize(tensor, mmap="maybe")  # type: ignore[arg-type]
