"""Keeps the parts of sharded modules lazy while `load_state_dict` writes to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from dormant._extension import _C
from dormant.recording.patches import Patch, declare
from dormant.tensors import dtensor
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import realize

if TYPE_CHECKING:
    import torch.distributed.tensor
    from torch.distributed.tensor import DTensor

Function = Callable[..., Any]


def own_part(whole: torch.Tensor, like: DTensor) -> DTensor:
    """This rank's part of a tensor that every rank has. Nothing is sent or read."""
    with torch.no_grad():
        return torch.distributed.tensor.distribute_tensor(
            whole.detach(), like.device_mesh, like.placements, src_data_rank=None
        )


def copy_parts(original: Function) -> Function:
    """`copy_` of DTensors, which records a copy of this rank's part if the parts are lazy.

    The result is the same, because parts that are divided alike need no communication. A whole lazy
    tensor, such as one of a checkpoint, is divided like the target, because every rank has the same
    tensor.
    """

    @functools.wraps(original)
    def replacement(self: DTensor, source: Any, *args: Any, **kwargs: Any) -> Any:
        parts = [_part(self), _part(source)]
        lazy = [part for part in parts if part is not None and _C.is_lazy(part)]
        if not lazy:
            return original(self, source, *args, **kwargs)
        if not _needs_grad(self, source):
            if not is_dtensor(source) and _C.is_lazy(source) and _is_whole(source, self):
                source = own_part(source, self)
            if _divided_alike(self, source):
                if not _same_elements(self._local_tensor, source._local_tensor):
                    self._local_tensor.copy_(source._local_tensor, *args, **kwargs)
                return self
        for part in lazy:
            realize(part)
        return original(self, source, *args, **kwargs)

    return replacement


def keep_lazy_part(original: Function) -> Function:
    """FSDP2's `reset_sharded_param`, which does nothing if the part is still the same.

    The original compares data pointers, which would materialize a lazy part; this one compares
    storages.
    """

    @functools.wraps(original)
    def replacement(self: Any) -> None:
        held = self._module_info
        parameter = getattr(held.module, held.param_name)
        if not is_dtensor(parameter):
            return  # during a load, a full-precision weight replaces a quantized one
        part, before = _part(parameter), self._sharded_param_data
        if part is None or not (_C.is_lazy(part) or _C.is_lazy(before)):
            original(self)
            return
        if parameter is self.sharded_param and _C.storage_id(part) == _C.storage_id(before):
            return
        # Without an earlier part, it compares no addresses.
        self._sharded_param_data = torch.empty(0)
        recorded = _C.set_recording(True)
        try:
            original(self)
        finally:
            _C.set_recording(recorded)

    return replacement


def _part(tensor: object) -> torch.Tensor | None:
    """The tensor that holds the memory."""
    found = getattr(tensor, "_local_tensor", tensor)
    return found if isinstance(found, torch.Tensor) else None


def _needs_grad(target: DTensor, source: Any) -> bool:
    return torch.is_grad_enabled() and (
        target.requires_grad or getattr(source, "requires_grad", False)
    )


def _is_whole(source: torch.Tensor, target: DTensor) -> bool:
    divided = not any(placement.is_partial() for placement in target.placements)
    return divided and source.shape == target.shape and source.device == target.device


def _divided_alike(a: DTensor, b: object) -> bool:
    return (
        is_dtensor(b)
        and a.device_mesh == b.device_mesh
        and a.placements == b.placements
        and a.shape == b.shape
    )


def _same_elements(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype is b.dtype
        and _C.storage_id(a) == _C.storage_id(b)
        and a.storage_offset() == b.storage_offset()
        and a.size() == b.size()
        and a.stride() == b.stride()
    )


declare(
    Patch(
        f"{dtensor.MODULE}:DTensor",
        "copy_",
        "runs on the local parts with our dispatch key off (pythonFallback, aten/src/ATen/core/"
        "PythonFallbackKernel.cpp)",
        copy_parts,
    ),
    Patch(
        "torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam",
        "reset_sharded_param",
        "compares data pointers after each load_state_dict",
        keep_lazy_part,
    ),
)
