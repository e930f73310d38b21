"""accelerate's `init_empty_weights()`: parameters on the meta device, buffers real."""

from __future__ import annotations

from collections.abc import Callable

import torch

NAME = "accelerate.init_empty_weights()"
EXACT = None


def build(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights():
        return make()
