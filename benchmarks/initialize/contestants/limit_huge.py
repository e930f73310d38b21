"""memset of fresh huge pages: the limit."""

from __future__ import annotations

import ctypes
import mmap

from benchmarks.initialize.memory_fill import fill, tensor_sizes
from benchmarks.initialize.workloads import Workload

NAME = "memset, huge pages"
EXACT = None
prepare = tensor_sizes


def build(workload: Workload) -> object:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        raise NotImplementedError("this system has no madvise for huge pages")
    nbytes = sum(tensor_sizes(workload))
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    fill([(ctypes.addressof(ctypes.c_char.from_buffer(memory)), nbytes)])
    return memory
