"""The initialization is recorded, and what is loaded never runs it."""

from __future__ import annotations

import torch

import dormant
from benchmarks.skip_init.models import build_model

NAME = "dormant"
EXACT = True


def build(path: str, width: int, layers: int, initializer: str) -> torch.nn.Module:
    with dormant.lazy_init():
        model = build_model(width, layers, initializer)
    dormant.load(model, path, missing="error", progress=False)
    return model
