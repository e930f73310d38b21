"""memset of fresh memory from PyTorch's allocator: the limit without huge pages."""

from __future__ import annotations

import torch

from benchmarks.initialise.memory_fill import fill
from benchmarks.initialise.workloads import Workload

NAME = "memset, PyTorch's memory"
EXACT = None


def build(workload: Workload) -> object:
    with torch.device("meta"):
        sizes = [tensor.nbytes for tensor in workload.make().parameters()]
    buffers = []
    for nbytes in sizes:
        buffers.append(torch.empty(nbytes, dtype=torch.uint8))
        fill(buffers[-1].data_ptr(), nbytes)
    return buffers
