"""Makes several threads that load one model do so one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dormant._extension import _C
from dormant.tensors.identity import owns_storage


@contextlib.contextmanager
def turn(model: torch.nn.Module) -> Iterator[None]:
    """While open, no other thread loads `model`, or what shares modules or tensors with it.

    Each load restores everything if it fails. Two loads at the same time would undo each other's
    work.

    Raises:
        RuntimeError: another thread loads it, and this thread must not wait, because it is in a
            callback of another load or of `materialize`.
        KeyboardInterrupt: the user interrupted the wait.
    """
    while True:
        ended = _C.Turn.ended()
        taken = _C.Turn(_things(model))
        if _C.Turn.ended() == ended:
            break
        taken.end()  # the other load may have exchanged modules and storages
    try:
        yield
    finally:
        taken.end()


def _things(model: torch.nn.Module) -> list[int]:
    """What only one thread may load at a time: a conversion exchanges storages, but not modules."""
    with torch._C.DisableTorchFunctionSubclass():
        tensors = (*model.parameters(), *model.buffers())
        storages = [_C.storage_id(tensor) for tensor in tensors if owns_storage(tensor)]
    return [*map(id, model.modules()), *storages]
