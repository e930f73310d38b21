"""Ranks that end badly, for the tests of the launcher."""

from __future__ import annotations

import os

import torch.distributed as dist


def raise_on_rank_one() -> None:
    """One rank raises, the other waits for it."""
    if dist.get_rank() == 1:
        raise ArithmeticError("wrong on purpose")
    dist.barrier()


def abort_on_rank_one() -> None:
    """One rank aborts."""
    if dist.get_rank() == 1:
        os.abort()


def hang() -> None:
    """A collective that one rank never joins, though it lives on."""
    if dist.get_rank() == 0:
        dist.barrier()
    while True:
        pass
