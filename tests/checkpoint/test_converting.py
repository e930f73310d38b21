"""`dormant.save` of a checkpoint, without the model ever in memory."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from written import STATE, WHOLE, write, write_set

import dormant
from compare import assert_same_bits


def test_a_checkpoint_is_converted_by_save(path: Path, tmp_path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    report = dormant.save(checkpoint, tmp_path / "out.safetensors")
    assert report.nbytes == checkpoint.nbytes
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert written.keys() == STATE.keys()
    for name, expected in STATE.items():
        assert_same_bits(expected, written[name], name)


def test_strided_and_conjugated_tensors_are_saved_as_their_values(tmp_path: Path) -> None:
    value = torch.randn(5, 6, dtype=torch.complex64)
    state = {"conjugate": value.conj(), "transposed": value.t(), "row": value[2, ::2]}
    torch.save(state, tmp_path / "model.pt")
    dormant.save(dormant.open_checkpoint(tmp_path / "model.pt"), tmp_path / "out")
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in state.items():
        assert_same_bits(expected, written[name], name)


def test_a_merged_and_cast_set_is_saved(tmp_path: Path) -> None:
    write_set(tmp_path / "set", "consolidated.{:02}.pth")
    merged = dormant.open_checkpoint(tmp_path / "set")
    dormant.save({n: t.to(torch.bfloat16) for n, t in merged.items()}, tmp_path / "o.safetensors")
    written = safetensors.torch.load_file(tmp_path / "o.safetensors")
    for name, expected in WHOLE.items():
        assert_same_bits(expected.bfloat16(), written[name], name)


def test_what_the_device_has_no_room_for_is_refused_before_it_is_written(tmp_path: Path) -> None:
    # A file of a kilobyte: one element, repeated by a stride of 0.
    torch.save({"a": torch.ones(1).as_strided((1 << 50,), (0,))}, tmp_path / "model.pt")
    checkpoint = dormant.open_checkpoint(tmp_path / "model.pt")
    with pytest.raises(OSError, match=r"4\.0 PiB do not fit into .* free") as caught:
        dormant.save(checkpoint, tmp_path / "out.safetensors")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


CONVERT = """
import sys
import torch, dormant
from dormant.reporting.memory import highest_resident_bytes
source, target, dtype = sys.argv[1:]
dormant.save({n: t.to(torch.float16) for n, t in dormant.open_checkpoint(source).items()}
             if dtype else dormant.open_checkpoint(source), target)
print(highest_resident_bytes())
"""


def peak_of_converting(source: Path, target: Path, dtype: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, source, target, dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize("dtype", ["", "float16"], ids=["as it is", "cast"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_converting_takes_no_memory_for_the_model(tmp_path: Path, suffix: str, dtype: str) -> None:
    small = write({"a": torch.randn(1000)}, tmp_path / f"small.{suffix}")
    least = peak_of_converting(small, tmp_path / "small", dtype)
    values = {str(i): torch.randn(40_000_000 // 4) for i in range(4)}
    large = write(values, tmp_path / f"large.{suffix}")
    peak = peak_of_converting(large, tmp_path / "large", dtype)
    # 160 MB of weights.
    assert peak - least < 48 << 20
    converted = tmp_path / "large" / "model.safetensors"
    written = safetensors.torch.load_file(converted)
    for name in ("0", "3"):
        assert_same_bits(values[name].half() if dtype else values[name], written[name], name)
    large.unlink()
    converted.unlink()
