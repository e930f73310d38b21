"""Positional reads by all threads: as fast as these files can be had at all."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_CHUNK = 1 << 20  # bytes; stays in a core's cache


def read(files: Sequence[Path]) -> None:
    """Reads everything into one small buffer for each thread."""
    _copy(files, None, 1)


def read_and_write(files: Sequence[Path], growth: int, *, huge_pages: bool) -> object:
    """Reads everything, and writes `growth` times as many bytes of fresh memory.

    Without growth the bytes are read to where they stay; else each piece is read into a small
    buffer, and what would be made of it is written by memset.
    """
    nbytes = sum(path.stat().st_size for path in files) * growth
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    elif huge_pages:
        raise NotImplementedError("this system has no madvise for huge pages")
    _copy(files, memory, growth)
    return memory


def _copy(files: Sequence[Path], memory: mmap.mmap | None, growth: int) -> None:
    target = None if memory is None else memoryview(memory)
    base = 0 if memory is None else ctypes.addressof(ctypes.c_char.from_buffer(memory))
    own = threading.local()

    def copy(piece: tuple[int, int, int, int]) -> None:
        descriptor, offset, count, place = piece
        if target is not None and growth == 1:
            buffer = target[place : place + count]
        else:
            if not hasattr(own, "buffer"):
                own.buffer = memoryview(bytearray(_CHUNK))
            buffer = own.buffer[:count]
        got = os.preadv(descriptor, [buffer], offset)
        if got != count:
            raise RuntimeError(f"benchmarks: read {got} bytes at {offset}, expected {count}")
        if target is not None and growth > 1:
            # ctypes releases the interpreter's lock while it calls.
            ctypes.memset(base + place * growth, 1, count * growth)

    descriptors = [os.open(path, os.O_RDONLY) for path in files]
    try:
        pieces, place = [], 0
        for descriptor in descriptors:
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, _CHUNK):
                count = min(_CHUNK, size - offset)
                pieces.append((descriptor, offset, count, place))
                place += count
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(copy, pieces))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
