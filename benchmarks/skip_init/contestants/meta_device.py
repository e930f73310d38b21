"""The model is constructed on the meta device, and takes over the tensors of the file."""

from __future__ import annotations

import safetensors.torch
import torch

from benchmarks.skip_init.models import build_model

NAME = "meta device, then load_state_dict(assign=True)"
EXACT = None


def build(path: str, width: int, layers: int, initializer: str) -> torch.nn.Module:
    with torch.device("meta"):
        model = build_model(width, layers, initializer)
    model.load_state_dict(safetensors.torch.load_file(path), assign=True)
    return model
