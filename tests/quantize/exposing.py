"""Loads a full-precision state dict into a quantized lazy model, through its exposed sources."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dormant.quantization.layers import quantized_weights


def load_exposed(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    strict: bool = True,
    assign: bool = False,
) -> Any:
    """`model.load_state_dict` while every quantized weight stands there in full precision."""
    with contextlib.ExitStack() as stack:
        for weight in quantized_weights(model):
            stack.enter_context(weight.expose())
        return model.load_state_dict(state, strict=strict, assign=assign)
