"""`dormant.lazy_init()`: the values can be had later."""

from __future__ import annotations

from collections.abc import Callable

import torch

import dormant

NAME = "dormant.lazy_init()"
EXACT = True


def build(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with dormant.lazy_init():
        return make()
