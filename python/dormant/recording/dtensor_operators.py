"""Operators on DTensors whose parts are lazy.

A DTensor calls operators on its parts with every earlier dispatch key off, including ours
(pythonFallback, aten/src/ATen/core/PythonFallbackKernel.cpp), so they would get a tensor without
memory. The parts are therefore materialized before, except for functions that only inspect a
DTensor. Initializers are recorded (dtensor_initialization.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording import dtensor_initialization
from dormant.recording.patches import Patch, declare
from dormant.tensors import dtensor
from dormant.tensors.identity import is_wrapper
from dormant.tensors.reachable import is_tensor
from dormant.tensors.storage import realize

Function = Callable[..., Any]

_LOOKING = frozenset(
    (
        *("__get__", "__set__", "__delete__", "__hash__", "__len__", "__dir__"),
        *("size", "stride", "dim", "ndimension", "numel", "nelement", "storage_offset"),
        *("element_size", "is_contiguous", "is_floating_point", "is_complex", "is_signed"),
        "_has_compatible_shallow_copy_type",
        *("is_inference", "is_same_size", "is_set_to", "is_shared", "is_pinned", "get_device"),
        *("detach", "detach_", "requires_grad_", "retain_grad", "register_hook"),
        *("register_post_accumulate_grad_hook", "untyped_storage", "has_names"),
        # These depend only on the shape and dtype.
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    )
)


class PartsFirst:
    """`DTensor.__torch_function__` while lazy tensors exist.

    It is not a function, because a function would be bound to the object as a method.
    """

    def __init__(self, original: Function) -> None:
        self._original = original

    def __call__(
        self,
        function: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `function(*args, **kwargs)` after materializing the parts that it needs."""
        made = dtensor_initialization.recorded(function, args, kwargs or {})
        if made is not NotImplemented:
            return made
        if getattr(function, "__name__", "") not in _LOOKING:
            for part in _lazy_parts((args, kwargs or {})):
                realize(part)
        return self._original(function, types, args, kwargs or {})


def _lazy_parts(value: object) -> Iterator[torch.Tensor]:
    if is_tensor(value):
        part = getattr(value, "_local_tensor", value)
        if not is_wrapper(part) and _C.is_lazy(part):
            yield part
    elif isinstance(value, dict):
        for element in value.values():
            yield from _lazy_parts(element)
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _lazy_parts(element)


declare(
    Patch(
        f"{dtensor.MODULE}:DTensor",
        "__torch_function__",
        "every other operator also runs on the local parts with our dispatch key off",
        PartsFirst,
    ),
)
