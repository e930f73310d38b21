"""A device "fake" for machines without a GPU: its memory are tensors on the CPU.

It is a backend of PyTorch (PrivateUse1) written in Python, so tensors on it are of another device
for everything else. It has no pinned memory and no streams. Importing this registers it for the
whole process, so only child processes may do so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("fake")

# Bytes of each copy from the CPU; what is allocated after `allocations_left` reaches 0 fails.
copied_bytes: list[int] = []
allocations_left: list[int] = []
_lock = threading.Lock()


class FakeTensor(torch.Tensor):
    """A tensor on the device, over `memory`."""

    memory: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, memory: torch.Tensor) -> FakeTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=torch.device("fake", 0),
        )
        tensor.memory = memory
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        python = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
        with torch._C._ExcludeDispatchKeyGuard(python):
            return func(*args, **(kwargs or {}))


def _kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return torch.library.impl(f"aten::{name}", "privateuseone")


def _allocate(make: Callable[[], torch.Tensor]) -> FakeTensor:
    if allocations_left:
        if allocations_left[0] == 0:
            raise torch.OutOfMemoryError("fake: out of memory")
        allocations_left[0] -= 1
    return FakeTensor(make())


@_kernel("empty.memory_format")
def _empty(size: Any, dtype: Any = None, *_: Any, memory_format: Any = None, **__: Any) -> Any:
    return _allocate(lambda: torch.empty(size, dtype=dtype, memory_format=memory_format))


@_kernel("empty_strided")
def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> Any:
    return _allocate(lambda: torch.empty_strided(size, stride, dtype=dtype))


@_kernel("_copy_from")
def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    from_memory = source.memory if isinstance(source, FakeTensor) else source
    to_memory = target.memory if isinstance(target, FakeTensor) else target
    to_memory.copy_(from_memory)
    if from_memory is source:
        with _lock:
            copied_bytes.append(source.nbytes)
    return target


def _view_kernel(name: str) -> None:
    @_kernel(name)
    def view(tensor: FakeTensor, *arguments: Any) -> FakeTensor:
        return FakeTensor(getattr(torch.ops.aten, name)(tensor.memory, *arguments))


for _name in ("view", "as_strided", "detach", "alias"):
    _view_kernel(_name)
