"""The limit of reading: all bytes, by all threads, into small buffers that stay in cache."""

from __future__ import annotations

from benchmarks.load import parallel_copy
from benchmarks.load.stored import Stored

NAME = "limit: parallel reads"
EXACT = None


def build(stored: Stored, scheme: str) -> None:
    parallel_copy.read(stored.files())
