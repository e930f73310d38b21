"""Downloaded into memory, and parsed there."""

from __future__ import annotations

import urllib.request

import safetensors.torch
import torch

NAME = "bytes, then safetensors"
EXACT = True


def build(url: str, dtype: torch.dtype, folder: str) -> dict[str, torch.Tensor]:
    with urllib.request.urlopen(url) as answer:
        state = safetensors.torch.load(answer.read())
    return {name: tensor.to(dtype) for name, tensor in state.items()}
