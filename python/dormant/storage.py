"""Lazy storages as seen through Python's storage objects, which know no dispatch key."""

from __future__ import annotations

import torch

from dormant import _C


def is_lazy_storage(storage: object) -> bool:
    """Whether `storage` is one without memory yet."""
    if isinstance(storage, torch.storage.TypedStorage):
        storage = storage._untyped_storage
    if not isinstance(storage, torch.UntypedStorage) or storage.device.type == "meta":
        return False
    return _C.is_lazy(_C.tensor_over(storage))


def realize(tensor: torch.Tensor) -> None:
    """Gives a lazy tensor its memory and values, because Python code is about to read them."""
    _C.materialize([tensor], "exact", None)
    _C.settle(tensor)


def realize_storage(storage: torch.UntypedStorage | torch.storage.TypedStorage) -> None:
    """`realize` for a lazy storage."""
    if isinstance(storage, torch.storage.TypedStorage):
        storage = storage._untyped_storage
    realize(_C.tensor_over(storage))
