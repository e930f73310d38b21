"""What loading costs: the memory of the result and little more, and no byte in vain."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from child import in_child, sees_the_memory

MIB = 1 << 20

FILE_BYTES = 8 * 4096 * 4096 * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 MiB of bfloat16 in eight layers."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    state = {f"{i}.weight": torch.full((4096, 4096), i + 1, dtype=torch.bfloat16) for i in range(8)}
    safetensors.torch.save_file(state, path)
    return path


def measured_in_child(path: Path, code: str) -> dict[str, int]:
    """Runs `code` in a new process and returns what it prints as JSON."""
    prelude = f"""
        import json, pathlib, torch, dormant
        from dormant.reporting.memory import highest_resident_bytes, resident_bytes

        path = pathlib.Path({str(path)!r})

        def model(dtype, layers=8):
            with dormant.lazy_init(dtype=dtype):
                return torch.nn.Sequential(
                    *[torch.nn.Linear(4096, 4096, bias=False) for _ in range(layers)]
                )

        def characters_read():
            lines = pathlib.Path("/proc/self/io").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("rchar")).split()[1])

        # What a process needs once is not the model's own: the code itself, the threads.
        dormant.load(model(torch.float32, 1), path, unexpected="ignore")
    """
    return in_child(prelude, code)


@pytest.mark.parametrize("mmap", ["auto", "never"])
def test_the_peak_of_a_cast_is_the_model_and_little_more(mmap: str, checkpoint: Path) -> None:
    found = measured_in_child(
        checkpoint,
        f"""
        before = resident_bytes()
        loaded = model(torch.float32)
        dormant.load(loaded, path, mmap={mmap!r})
        print(json.dumps({{
            "final": sum(p.nbytes for p in loaded.parameters()),
            "grown": resident_bytes() - before,
            "peak": highest_resident_bytes() - before,
        }}))
        """,
    )
    assert found["final"] == 2 * FILE_BYTES
    assert sees_the_memory(found)
    assert found["peak"] <= found["final"] + 64 * MIB


def test_the_same_dtype_is_shown_in_place(checkpoint: Path) -> None:
    """A mapping takes no memory of its own before it is read."""
    found = measured_in_child(
        checkpoint,
        """
        loaded = model(torch.bfloat16)
        before, read = resident_bytes(), characters_read()
        dormant.load(loaded, path)
        print(json.dumps({
            "grown": resident_bytes() - before,
            "read": characters_read() - read,
            "sum": int(sum(p[7, 9].item() for p in loaded.parameters())),
        }))
        """,
    )
    assert found["sum"] == 36
    assert found["grown"] <= 32 * MIB
    assert found["read"] <= MIB


def test_every_byte_is_read_once(checkpoint: Path) -> None:
    found = measured_in_child(
        checkpoint,
        """
        loaded = model(torch.float32)
        before = characters_read()
        dormant.load(loaded, path, mmap="never")
        print(json.dumps({"read": characters_read() - before}))
        """,
    )
    assert FILE_BYTES <= found["read"] <= FILE_BYTES + MIB


def test_bytes_of_tensors_that_are_not_wanted_are_not_read(checkpoint: Path) -> None:
    found = measured_in_child(
        checkpoint,
        """
        loaded = model(torch.float32, 2)
        before = characters_read()
        dormant.load(loaded, path, unexpected="ignore", mmap="never")
        print(json.dumps({"read": characters_read() - before}))
        """,
    )
    assert FILE_BYTES // 4 <= found["read"] <= FILE_BYTES // 4 + MIB
