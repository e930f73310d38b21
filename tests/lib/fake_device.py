"""A device for machines without a GPU, "hpu": fake_device.cpp, compiled and registered.

    python tests/lib/fake_device.py FOLDER

compiles the library into a folder and prints its path. The process that registers it has the device
until it ends, so only child processes do so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# Where `register` finds the library.
VARIABLE = "DORMANT_FAKE_DEVICE"


def build(folder: Path) -> Path:
    """Compiles the library into `folder`, against the installed torch, and returns its path."""
    library = folder / "fake_device.so"
    torch_folder = Path(torch.__file__).parent
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-Wall"),
        *("-isystem", torch_folder / "include", Path(__file__).with_suffix(".cpp"), "-o", library),
        *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    subprocess.run(command, check=True)
    return library


class FakeDevice:
    """The device, registered in this process.

    Raises:
        KeyError: the environment has no path of the library.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[VARIABLE])
        module: Any = ModuleType("torch.hpu")
        module._lazy_init = lambda: None
        module.is_available = lambda: True
        module.is_initialized = lambda: True
        module.device_count = lambda: 1
        module.current_device = lambda: 0
        module._is_in_bad_fork = lambda: False
        module.device = lambda device: contextlib.nullcontext()
        module.manual_seed_all = lambda seed: None
        torch._register_device_module("hpu", module)

    def allocations_left(self, count: int) -> None:
        """Makes the allocation after `count` more ones fail, and all behind it; -1: none."""
        self._library.fake_allocations_left(ctypes.c_int64(count))

    def copies_left(self, count: int) -> None:
        """Makes the copy after `count` more ones fail there, and all behind it; -1: none."""
        self._library.fake_copies_left(ctypes.c_int64(count))

    def copied_bytes(self) -> list[int]:
        """The bytes of each copy from the CPU."""
        self._library.fake_copied_bytes.restype = ctypes.c_int64
        sizes = (ctypes.c_int64 * 100_000)()
        count = self._library.fake_copied_bytes(sizes, ctypes.c_int64(len(sizes)))
        assert count <= len(sizes)
        return list(sizes[:count])


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
