"""A copy of the part, cut while the whole is lazy; the whole is dropped before materializing."""

from __future__ import annotations

import torch

import dormant
from benchmarks.shard.part import part

NAME = "dormant, the part"
EXACT = True


def build(rows: int, columns: int, dim: int) -> torch.Tensor:
    with dormant.lazy_init():
        whole = torch.empty(rows, columns).normal_()
    shard = part(whole, dim).clone()
    del whole
    dormant.materialize(shard, progress=False)
    return shard
