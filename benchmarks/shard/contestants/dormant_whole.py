"""The whole tensor materialized, then cut."""

from __future__ import annotations

import torch

import dormant
from benchmarks.shard.part import part

NAME = "dormant, the whole"
EXACT = True


def build(rows: int, columns: int, dim: int) -> torch.Tensor:
    with dormant.lazy_init():
        whole = torch.empty(rows, columns).normal_()
    dormant.materialize(whole, progress=False)
    return part(whole, dim).clone()
