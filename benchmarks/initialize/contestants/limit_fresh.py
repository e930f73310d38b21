"""memset of fresh memory from PyTorch's allocator: the limit without huge pages."""

from __future__ import annotations

import torch

from benchmarks.initialize.memory_fill import fill, tensor_sizes
from benchmarks.initialize.workloads import Workload

NAME = "memset, PyTorch's memory"
EXACT = None
prepare = tensor_sizes


def build(workload: Workload) -> object:
    buffers = [torch.empty(nbytes, dtype=torch.uint8) for nbytes in tensor_sizes(workload)]
    fill([(buffer.data_ptr(), buffer.nbytes) for buffer in buffers])
    return buffers
