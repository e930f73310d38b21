"""The limit of reading: all bytes, by all threads, into small buffers that stay in cache."""

from __future__ import annotations

import torch

from benchmarks.load import parallel_copy
from benchmarks.load.stored import Stored

NAME = "limit: parallel reads"
EXACT = None


def build(stored: Stored, dtype: torch.dtype) -> None:
    parallel_copy.read(stored.files())
