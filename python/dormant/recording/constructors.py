"""Functions that make tensors of Python numbers, and misread lazy tensors among them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording.patches import Patch, declare
from dormant.tensors.storage import realize

Function = Callable[..., Any]


def _realize_nested(original: Function) -> Function:
    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if _C.is_lazy(value):
                realize(value)
        elif isinstance(value, (list, tuple)):
            for element in value:
                visit(element)

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        # A tensor by itself is a dispatched copy; only sequences are read behind the dispatcher.
        data = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, (list, tuple)):
            visit(data)
        return original(*args, **kwargs)

    return replacement


def _ask_a_real_tensor(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        _C.settle(self)
        if _C.carries_key(self):
            # Only the type, dtype and device of `self` count for what is created.
            stand_in = torch.tensor([], dtype=self.dtype, device=self.device)
            return original(stand_in.as_subclass(type(self)), *args, **kwargs)
        return original(self, *args, **kwargs)

    return replacement


_LEGACY_KEY = "derives a device from the dispatch keys and rejects ours"

declare(
    *(
        Patch(
            torch, name, "reads the tensors in a nested sequence with our key off", _realize_nested
        )
        for name in ("tensor", "as_tensor", "asarray")
    ),
    Patch(torch.Tensor, "new", _LEGACY_KEY, _ask_a_real_tensor),
    Patch(torch.Tensor, "new_tensor", _LEGACY_KEY, _ask_a_real_tensor),
)
