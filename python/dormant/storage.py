"""Lazy storages as seen through Python's storage objects, which know no dispatch key."""

from __future__ import annotations

from typing import cast

import torch

from dormant import _C

_KEY = torch._C.DispatchKeySet(
    cast(torch._C.DispatchKey, torch._C._parse_dispatch_key("DeferredInit"))
)


def tensor_over(storage: torch.UntypedStorage) -> torch.Tensor:
    """A uint8 tensor over the whole of `storage`, whether or not it has memory."""
    # Neither recorded nor seen by a mode: it only asks a question about a storage.
    with (
        torch._C._ExcludeDispatchKeyGuard(_KEY),
        torch._C._DisableTorchDispatch(),
        torch._C.DisableTorchFunction(),
    ):
        empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
        return empty.set_(storage, 0, (storage.nbytes(),), (1,))


def is_lazy_storage(storage: object) -> bool:
    """Whether `storage` is one without memory yet."""
    if isinstance(storage, torch.storage.TypedStorage):
        storage = storage._untyped_storage
    if not isinstance(storage, torch.UntypedStorage) or storage.device.type == "meta":
        return False
    return _C.is_lazy(tensor_over(storage))


def realize(tensor: torch.Tensor) -> None:
    """Gives a lazy tensor its memory and values, because Python code is about to read them."""
    _C.materialize([tensor], "exact", None)
    _C.settle(tensor)


def realize_storage(storage: torch.UntypedStorage | torch.storage.TypedStorage) -> None:
    """`realize` for a lazy storage."""
    if isinstance(storage, torch.storage.TypedStorage):
        storage = storage._untyped_storage
    realize(tensor_over(storage))
