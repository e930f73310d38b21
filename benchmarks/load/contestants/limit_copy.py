"""The limit of loading: reads the same bytes, and writes as many fresh ones as the result takes."""

from __future__ import annotations

import torch

from benchmarks.load import parallel_copy
from benchmarks.load.stored import Stored

NAME = "limit: parallel copy"
EXACT = None


def build(stored: Stored, dtype: torch.dtype) -> object:
    growth = dtype.itemsize // torch.bfloat16.itemsize
    return parallel_copy.read_and_write(stored.files(), growth, huge_pages=False)
