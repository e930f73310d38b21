"""Loads of one model, by several threads: one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dormant._extension import _C
from dormant.tensors.identity import owns_storage


@contextlib.contextmanager
def turn(model: torch.nn.Module) -> Iterator[None]:
    """No other thread loads `model`, or what shares modules or tensors with it, meanwhile.

    Each load puts everything back where it fails. Two at a time would put back what the other one
    has just done.

    Raises:
        RuntimeError: another thread loads it, and this one may not wait: it is in a callback of
            another load or of `materialize`.
        KeyboardInterrupt: the user interrupted the wait.
    """
    while True:
        ended = _C.Turn.ended()
        taken = _C.Turn(_things(model))
        if _C.Turn.ended() == ended:
            break
        taken.end()  # what was waited for may have exchanged modules and storages
    try:
        yield
    finally:
        taken.end()


def _things(model: torch.nn.Module) -> list[int]:
    """What nobody else may have a turn with: a conversion exchanges storages, but no modules."""
    with torch._C.DisableTorchFunctionSubclass():
        tensors = (*model.parameters(), *model.buffers())
        storages = [_C.storage_id(tensor) for tensor in tensors if owns_storage(tensor)]
    return [*map(id, model.modules()), *storages]
