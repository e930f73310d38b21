"""Opened at its URL, and materialized: requests go on while tensors are made."""

from __future__ import annotations

import torch

import dormant

NAME = "dormant, from the URL"
EXACT = True


def build(url: str, dtype: torch.dtype, folder: str) -> dict[str, torch.Tensor]:
    state = {name: tensor.to(dtype) for name, tensor in dormant.open_checkpoint(url).items()}
    dormant.materialize(state, progress=False)
    return state
