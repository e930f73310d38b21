"""Checks for DTensors without importing their module, which takes half a second."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MODULE = "torch.distributed.tensor"


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Whether `value` is a DTensor. None exists before their module is imported."""
    cls = getattr(sys.modules.get(MODULE), "DTensor", None)
    return cls is not None and issubclass(type(value), cls)
