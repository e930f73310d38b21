"""memset by several threads: as fast as memory can be written at all."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from benchmarks.initialize.workloads import Workload


@cache
def tensor_sizes(workload: Workload) -> tuple[int, ...]:
    """Bytes of each parameter, found before the clock starts."""
    with torch.device("meta"):
        return tuple(tensor.nbytes for tensor in workload.make().parameters())


def fill(regions: Sequence[tuple[int, int]]) -> None:
    """Writes a byte to all of every (address, bytes), with as many threads as PyTorch uses."""
    threads = torch.get_num_threads()
    parts = [
        (address + start, min(-(-nbytes // threads), nbytes - start))
        for address, nbytes in regions
        for start in range(0, nbytes, -(-nbytes // threads))
    ]
    with ThreadPoolExecutor(threads) as pool:
        # ctypes releases the interpreter's lock while it calls.
        list(pool.map(lambda part: ctypes.memset(part[0], 1, part[1]), parts))
