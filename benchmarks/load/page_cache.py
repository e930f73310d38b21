"""What the system keeps of files in memory: fills it, empties it, and looks."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

_READ = 8 << 20  # bytes at a time


def fill(files: Sequence[Path]) -> None:
    """Reads everything once."""
    buffer = memoryview(bytearray(_READ))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def empty(files: Sequence[Path]) -> None:
    """Asks the system to forget the files; `cached_share` tells whether it did.

    Below the system, a disk or the host of a virtual machine may still remember them.
    """
    if not hasattr(os, "posix_fadvise"):
        raise NotImplementedError("this system cannot be asked to forget cached files")
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that wait to be written are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(files: Sequence[Path]) -> float:
    """The share of the files' pages that are in memory, from 0 to 1; NaN where nobody tells."""
    mincore = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    if mincore is None:
        return float("nan")
    cached = pages = 0
    for path in files:
        size = path.stat().st_size
        # Private and writable, so that ctypes may take its address; nothing is written.
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as m:
            count = -(-size // mmap.PAGESIZE)
            states = (ctypes.c_ubyte * count)()
            first = ctypes.c_char.from_buffer(m)
            address = ctypes.c_void_p(ctypes.addressof(first))
            failed = mincore(address, ctypes.c_size_t(size), states)
            del first
            if failed:
                return float("nan")
            cached += sum(state & 1 for state in bytes(states))
            pages += count
    return cached / pages
