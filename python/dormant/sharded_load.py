"""What makes `load_state_dict` of sharded modules work on lazy parts, and keeps them lazy."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from dormant import _C

_FSDP = "torch.distributed.fsdp._fully_shard._fsdp_param"


@contextlib.contextmanager
def parts_stay_lazy() -> Iterator[None]:
    """While it is open, `load_state_dict` of DTensors records copies of this rank's parts."""
    with contextlib.ExitStack() as stack:
        # Nobody has sharded a module with FSDP2 who has not imported it.
        if _FSDP in sys.modules:
            stack.enter_context(_without_comparing_pointers(sys.modules[_FSDP].FSDPParam))
        stack.enter_context(_CopyPartByPart())
        yield


class _CopyPartByPart(TorchFunctionMode):
    """`copy_` between DTensors that are divided alike copies the parts.

    PyTorch runs what a DTensor's operators call with all dispatch keys above Python's excluded
    (`pythonFallback` in aten/src/ATen/core/PythonFallbackKernel.cpp), ours too, so `copy_` into a
    DTensor whose part is lazy would ask for memory that is not there. A copy of the part itself is
    recorded. It computes the same: parts that are divided alike need no communication.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.copy_ and len(args) == 2 and _divided_alike(*args):
            target, source = args
            target._local_tensor.copy_(source._local_tensor)
            return target
        return func(*args, **(kwargs or {}))


def _divided_alike(a: object, b: object) -> bool:
    return (
        isinstance(a, DTensor)
        and isinstance(b, DTensor)
        and a.device_mesh == b.device_mesh
        and a.placements == b.placements
        and a.shape == b.shape
    )


@contextlib.contextmanager
def _without_comparing_pointers(parameter_class: Any) -> Iterator[None]:
    """FSDP2 looks after each load whether its part is still where it was, by the data pointer.

    A lazy part would come to life for the answer, which its storage gives as well.
    """
    original = parameter_class.reset_sharded_param

    @functools.wraps(original)
    def reset_sharded_param(self: Any) -> None:
        held = self._module_info
        parameter = getattr(held.module, held.param_name)
        part = getattr(parameter, "_local_tensor", None)
        if (
            parameter is self.sharded_param
            and isinstance(part, torch.Tensor)
            and _C.is_lazy(part)
            and _C.storage_id(part) == _C.storage_id(self._sharded_param_data)
        ):
            return
        original(self)

    parameter_class.reset_sharded_param = reset_sharded_param
    try:
        yield
    finally:
        parameter_class.reset_sharded_param = original
