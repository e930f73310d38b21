"""Methods that create tensors of the type of another one, and do not support lazy tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording.patches import Patch, declare

Function = Callable[..., Any]


def _ask_a_real_tensor(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        _C.settle(self)
        if _C.carries_key(self):
            # The new tensor depends only on the type, dtype and device of `self`.
            stand_in = torch.tensor([], dtype=self.dtype, device=self.device)
            return original(stand_in.as_subclass(type(self)), *args, **kwargs)
        return original(self, *args, **kwargs)

    return replacement


_LEGACY_KEY = "derives a device from the dispatch keys and rejects ours"

declare(
    Patch(torch.Tensor, "new", _LEGACY_KEY, _ask_a_real_tensor),
    Patch(torch.Tensor, "new_tensor", _LEGACY_KEY, _ask_a_real_tensor),
)
