"""The elements of a tensor of a checkpoint, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dormant.materialization.api import materialize

# Bytes that are materialized at a time.
_PIECE = 16 << 20


def pieces(tensor: torch.Tensor, *, elements: int | None = None) -> Iterator[torch.Tensor]:
    """The elements in logical order, as real vectors of which one is in memory at a time.

    Args:
        tensor: a tensor of a checkpoint.
        elements: of each piece; None takes as many as 16 MiB hold.
    """
    # On a lazy tensor, a call that has nothing to resolve would materialize it.
    if tensor.is_conj():
        tensor = tensor.resolve_conj()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    flat = tensor.contiguous().reshape(-1)
    step = elements or _PIECE // tensor.element_size()
    for begin in range(0, flat.numel(), step):
        # A copy, so that only this piece of a lazy tensor is materialized.
        piece = flat[begin : begin + step].clone()
        # Pages of a mapped file would stay resident until the last piece is read.
        materialize(piece, mmap="never", progress=False)
        yield piece
