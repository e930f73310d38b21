"""`torch.device("meta")`: shapes only, how to initialize them is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import torch

NAME = 'torch.device("meta")'
EXACT = None


def build(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.device("meta"):
        return make()
