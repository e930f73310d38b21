"""Everything is initialized, and then overwritten."""

from __future__ import annotations

import safetensors.torch
import torch

from benchmarks.skip_init.models import build_model

NAME = "eager, then load_state_dict"
EXACT = True


def build(path: str, width: int, layers: int, initializer: str) -> torch.nn.Module:
    model = build_model(width, layers, initializer)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model
