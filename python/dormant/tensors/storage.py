"""Lazy storages behind Python's storage objects, which have no dispatch key."""

from __future__ import annotations

from typing import cast

import torch

from dormant._extension import _C

_KEY = torch._C.DispatchKeySet(
    cast(torch._C.DispatchKey, torch._C._parse_dispatch_key("DeferredInit"))
)


def is_lazy_storage(storage: object) -> bool:
    """Whether `storage` has no memory yet."""
    if isinstance(storage, torch.storage.TypedStorage):
        storage = storage._untyped_storage
    if not isinstance(storage, torch.UntypedStorage) or storage.device.type == "meta":
        return False
    return _C.is_lazy(_C.tensor_over(storage))


def unrecorded() -> torch._C._ExcludeDispatchKeyGuard:
    """A context in which this thread records nothing.

    PyTorch's own storage functions create empty tensors and give them a storage to work on.
    """
    return torch._C._ExcludeDispatchKeyGuard(_KEY)


def realize(tensor: torch.Tensor) -> None:
    """Gives a lazy tensor its memory and values, because Python code is about to read them."""
    _C.materialize([tensor], "exact", None)


def realize_storage(storage: torch.UntypedStorage | torch.storage.TypedStorage) -> None:
    """`realize` for a lazy storage."""
    if isinstance(storage, torch.storage.TypedStorage):
        storage = storage._untyped_storage
    realize(_C.tensor_over(storage))
