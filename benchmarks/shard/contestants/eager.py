"""The whole tensor made, then cut: what every rank does without lazy initialization."""

from __future__ import annotations

import torch

from benchmarks.shard.part import part

NAME = "eager, the whole"
EXACT = True


def build(rows: int, columns: int, dim: int) -> torch.Tensor:
    return part(torch.empty(rows, columns).normal_(), dim).clone()
