"""Whether something is a DTensor, asked without the half second of importing their module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MODULE = "torch.distributed.tensor"


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Whether `value` is a DTensor: none exists before that module is imported."""
    cls = getattr(sys.modules.get(MODULE), "DTensor", None)
    return cls is not None and issubclass(type(value), cls)
