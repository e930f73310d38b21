"""Tied parameters of a lazy model that is loaded by accelerate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording.patches import Patch, declare

Function = Callable[..., Any]


def _tie_to_what_was_loaded(original: Function) -> Function:
    """Accelerate's `retie_parameters`, which ties a group to its first tensor that is not meta.

    It assumes that only loaded tensors are on a device. A lazy tensor is also on a device, so a
    tensor that is only initialized is skipped in favor of one that accelerate loaded or offloaded.
    """

    @functools.wraps(original)
    def replacement(model: torch.nn.Module, tied_params: Any) -> Any:
        for group in tied_params:
            holders = [_holder(model, name) for name in group]
            tensors = [getattr(module, name) for module, name in holders]
            loaded = [tensor for tensor in tensors if not _is_only_initialized(tensor)]
            # One on a device before one that only its file has.
            loaded.sort(key=lambda tensor: tensor.is_meta)
            if not loaded or len(loaded) == len(tensors):
                original(model, [group])
                continue
            for module, name in holders:
                setattr(module, name, loaded[0])

    return replacement


def _holder(model: torch.nn.Module, path: str) -> tuple[Any, str]:
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, model), name


def _is_only_initialized(tensor: torch.Tensor) -> bool:
    return _C.is_lazy(tensor) and not _C.sources(tensor)


declare(
    Patch(
        "accelerate.utils.modeling",
        "retie_parameters",
        "can take a tensor that is only initialized as the loaded one of a tied group",
        _tie_to_what_was_loaded,
    ),
)
