"""The functions of torch.nn.init do nothing while the model is constructed."""

from __future__ import annotations

from unittest import mock

import safetensors.torch
import torch

from benchmarks.skip_init.models import build_model

NAME = "torch.nn.init patched, then load_state_dict"
EXACT = None
_PATCHED = ("kaiming_uniform_", "uniform_", "trunc_normal_", "zeros_")


def build(path: str, width: int, layers: int, initializer: str) -> torch.nn.Module:
    nothing = {name: lambda tensor, *_, **__: tensor for name in _PATCHED}
    with mock.patch.multiple(torch.nn.init, **nothing):
        model = build_model(width, layers, initializer)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model
