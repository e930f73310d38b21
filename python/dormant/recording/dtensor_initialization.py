"""Initializers of DTensors with lazy parts: each part gets what the whole tensor would get.

Code for several ranks often divides a model first and initializes it then (`to_empty` and
`init_weights` after `fully_shard`). Inside the context that is recorded for a whole lazy tensor, of
which this rank keeps its part: so values depend on the seed alone, not on the number of ranks, and
a rank computes its part of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dormant._extension import _C
from dormant.recording.dtensor_copies import own_part
from dormant.recording.patches import Patch, declare
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.reachable import is_tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Function = Callable[..., Any]

_DRAWS = frozenset(
    (
        *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_"),
        *("random_", "uniform_"),
    )
)

# Of numbers alone: what an element becomes depends on no other.
_BY_ELEMENT = frozenset(
    (
        *("fill_", "zero_", "add_", "sub_", "mul_", "div_", "neg_", "abs_", "pow_", "sqrt_"),
        *("exp_", "log_", "sin_", "cos_", "tanh_", "erf_", "erfinv_", "sigmoid_"),
        *("clamp_", "clip_", "clamp_min_", "clamp_max_"),
    )
)

_EMPTY_LIKE = frozenset(("empty_like", "zeros_like", "ones_like", "full_like"))
_RECORDED = _DRAWS | _BY_ELEMENT | _EMPTY_LIKE


def recorded(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `function` gives for a DTensor, recorded; NotImplemented where that is not done here.

    Args:
        function: as `__torch_function__` gets it.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    name = getattr(function, "__name__", "")
    initializer = getattr(function, "__module__", None) == "torch.nn.init"
    if not (initializer or name in _RECORDED) or not _C.recording():
        return NotImplemented
    if initializer and not args and "tensor" in kwargs:
        kwargs = dict(kwargs)
        args = (kwargs.pop("tensor"),)
    if not args or not is_dtensor(args[0]) or _any_tensor(args[1:], kwargs):
        return NotImplemented
    target = args[0]
    if name in _EMPTY_LIKE:
        return _made_like(function, target, args[1:], kwargs)
    if not is_initialized_as_whole(target) or (not initializer and _autograd_refuses(target)):
        return NotImplemented
    if name in _BY_ELEMENT and not initializer:
        function(target._local_tensor, *args[1:], **kwargs)
        return target
    return initialize_as_whole(target, lambda whole: function(whole, *args[1:], **kwargs))


def is_initialized_as_whole(target: torch.Tensor) -> bool:
    """Whether `target` is a DTensor that `initialize_as_whole` takes."""
    if not _C.recording() or not is_dtensor(target):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        divided = not any(placement.is_partial() for placement in target.placements)
        return divided and _C.is_lazy(target._local_tensor)


def _autograd_refuses(target: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return torch.is_grad_enabled() and target.requires_grad


def initialize_as_whole(
    target: torch.Tensor, fill: Callable[[torch.Tensor], object]
) -> torch.Tensor:
    """Gives a DTensor this rank's part of what `fill` makes of a whole tensor."""
    divided: Any = target
    part = divided._local_tensor
    with torch.no_grad():
        whole = torch.empty(target.shape, dtype=part.dtype, device=part.device)
        fill(whole)
        part.copy_(own_part(whole, divided)._local_tensor)
    return target


def _made_like(
    function: Function, target: DTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A DTensor with a lazy part, divided as `target` is."""
    if kwargs.get("layout", torch.strided) is not torch.strided or kwargs.get("pin_memory"):
        return NotImplemented
    options = {name: value for name, value in kwargs.items() if name != "requires_grad"}
    with torch.no_grad():
        part = function(target._local_tensor, *args, **options)
    if part.device.type != target.device_mesh.device_type or not _C.is_lazy(part):
        return NotImplemented
    spec: Any = target._spec
    meta = spec.tensor_meta._replace(dtype=part.dtype)
    kind: Any = type(target)
    requires_grad = bool(kwargs.get("requires_grad"))
    return kind(part, replace(spec, tensor_meta=meta), requires_grad=requires_grad)


def _any_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(is_tensor(value) for value in (*args, *kwargs.values()))


def _on_the_whole(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_initialized_as_whole(tensor):
            return initialize_as_whole(tensor, lambda whole: original(whole, *args, **kwargs))
        return original(tensor, *args, **kwargs)

    return replacement


declare(
    *(
        Patch(
            torch.nn.init,
            name,
            "the value of an element depends on other elements, which may be on other ranks",
            _on_the_whole,
        )
        for name in ("orthogonal_", "eye_", "dirac_", "sparse_")
    )
)
