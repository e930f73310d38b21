"""Functions that read or move memory without a dispatched operator: they materialize first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.dlpack

from dormant._extension import _C
from dormant.recording.patches import Patch, declare, uninstall_if_idle
from dormant.tensors.reachable import is_tensor
from dormant.tensors.storage import is_lazy_storage, realize, realize_storage, unrecorded

Function = Callable[..., Any]


def _realize_tensor_first(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if is_tensor(value) and _C.is_lazy(value):
                realize(value)
        uninstall_if_idle()
        return original(*args, **kwargs)

    return replacement


def _realize_storage_first(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if is_lazy_storage(value):
                realize_storage(value)
        uninstall_if_idle()
        with unrecorded():
            return original(*args, **kwargs)

    return replacement


def _set_lazily(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if _C.recording() or not any(map(is_lazy_storage, (*args, *kwargs.values()))):
            return original(self, *args, **kwargs)
        _C.set_recording(True)
        try:
            return original(self, *args, **kwargs)
        finally:
            _C.set_recording(False)

    return replacement


def _no_for_lazy_tensors(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return False if _C.is_lazy(self) else original(self, *args, **kwargs)

    return replacement


def _no_for_lazy_storages(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        return False if is_lazy_storage(self) else original(self, *args, **kwargs)

    return replacement


def _assign_one_dimension(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, index: Any, value: Any) -> None:
        # For a value with one dimension, torch reads no pointer, and the value broadcasts equally.
        if (
            is_tensor(value)
            and value.dim() == 0
            and is_tensor(self)
            and (_C.is_lazy(self) or _C.is_lazy(value))
        ):
            value = value.view(1)
        original(self, index, value)

    return replacement


_POINTER = "reads the data pointer without any dispatched operator"

declare(
    *(
        Patch(torch.Tensor, name, reason, _realize_tensor_first)
        for name, reason in (
            ("numpy", _POINTER),  # __array__ goes through it
            ("tolist", _POINTER),
            ("data_ptr", _POINTER),
            ("const_data_ptr", _POINTER),
            ("__dlpack__", _POINTER),  # torch.from_dlpack and numpy.from_dlpack ask for it
            ("apply_", _POINTER),
            ("map_", _POINTER),
            ("map2_", _POINTER),
            ("pin_memory", "allocates and copies through the data pointer"),
        )
        if hasattr(torch.Tensor, name)  # torch 2.11 has no const_data_ptr
    ),
    Patch(torch.utils.dlpack, "to_dlpack", _POINTER, _realize_tensor_first),
    Patch(torch, "to_dlpack", "the same function under its second name", _realize_tensor_first),
    Patch(
        torch.Tensor,
        "is_pinned",
        "asks the driver about the pointer; memory that does not exist is not pinned",
        _no_for_lazy_tensors,
    ),
    Patch(
        torch.Tensor,
        "set_",
        "takes a lazy storage as an argument, which has no dispatch key; copy.copy calls it",
        _set_lazily,
    ),
    *(
        Patch(torch.UntypedStorage, name, reason, _realize_storage_first)
        for name, reason in (
            ("__getitem__", _POINTER),  # tolist iterates
            ("__setitem__", _POINTER),
            ("copy_", _POINTER),  # clone and deepcopy of a storage go through it
            ("fill_", _POINTER),
            ("resize_", "copies the old bytes through the pointer"),
            ("_byteswap", _POINTER),
            ("_get_filename", _POINTER),
            ("_get_shared_fd", _POINTER),
            ("_share_fd_cpu_", "moves the bytes to shared memory; share_memory_ calls it"),
            ("_share_filename_cpu_", "moves the bytes to shared memory"),
            ("_to", _POINTER),  # float(), half() ... of a storage
            ("pin_memory", "allocates and copies through the data pointer"),
        )
    ),
    Patch(
        torch.UntypedStorage,
        "is_shared",
        "reads through the pointer and aborts the process; no memory is shared yet",
        _no_for_lazy_storages,
    ),
    Patch(
        torch.UntypedStorage,
        "is_pinned",
        "asks the driver about the pointer; memory that does not exist is not pinned",
        _no_for_lazy_storages,
    ),
    Patch(torch.storage.TypedStorage, "_getitem", _POINTER, _realize_storage_first),
    Patch(torch.storage.TypedStorage, "_setitem", _POINTER, _realize_storage_first),
)
if torch.__version__ >= "2.15":  # earlier releases record it as any other copy
    declare(
        Patch(
            torch.Tensor,
            "__setitem__",
            "compares the pointers of tensor and value if the value has no dimensions",
            _assign_one_dimension,
        )
    )
