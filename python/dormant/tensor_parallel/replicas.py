"""Checks that parts which should hold the same tensor do so, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dormant._extension import _C
from dormant.materialization.api import materialize
from dormant.tensors.identity import identity

_BLOCK_BYTES = 8 << 20  # of all replicas together, so large ones never exist whole


def check_replicas(operation: str, name: str, replicas: Sequence[torch.Tensor]) -> None:
    """Fails unless all replicas of a tensor have the same bits.

    Lazy tensors stay lazy: their blocks are computed and dropped.

    Args:
        operation: the operation that the user called, for the message.
        name: the tensor's name.
        replicas: one tensor for each part, of one dtype and shape.

    Raises:
        ValueError: they differ; the message says where they first do.

    Example:
        >>> import torch
        >>> check_replicas("merge", "norm", [torch.ones(2), torch.tensor([1.0, 2.0])])
        Traceback (most recent call last):
            ...
        ValueError: merge: 'norm' is replicated, so all parts must hold the same bits, but in part \
1 element (1,) is 2.0, in part 0 it is 1.0. Give it the rule by which it is divided, or, to take \
part 0's, pass check=False.
    """
    first = replicas[0]
    # A tensor that an unsharded model gave to all parts need not be checked.
    others = {
        part: replica
        for part, replica in enumerate(replicas)
        if identity(replica) != identity(first)
    }
    if not others or first.numel() == 0:
        return
    block = max(1, _BLOCK_BYTES // ((len(others) + 1) * first.element_size()))
    for begin in range(0, first.numel(), block):
        count = min(block, first.numel() - begin)
        blocks = {part: _block(t, begin, count) for part, t in {0: first, **others}.items()}
        materialize(blocks.values(), progress=False)
        for part in others:
            differing = _first_difference(blocks[0], blocks[part])
            if differing is not None:
                index = _index(begin + differing, first.shape)
                raise ValueError(
                    f"{operation}: {name!r} is replicated, so all parts must hold the same bits, "
                    f"but in part {part} element {index} is {blocks[part][differing].item()!r}, in "
                    f"part 0 it is {blocks[0][differing].item()!r}. Give it the rule by which it "
                    "is divided, or, to take part 0's, pass check=False."
                )


def _block(tensor: torch.Tensor, begin: int, count: int) -> torch.Tensor:
    flat = tensor.detach().reshape(-1).narrow(0, begin, count)
    # A copy can be materialized without the tensor.
    return flat.clone() if _C.is_lazy(tensor) else flat


def _first_difference(one: torch.Tensor, other: torch.Tensor) -> int | None:
    size = one.element_size()
    differing = one.view(torch.uint8) != other.view(torch.uint8)
    if not bool(differing.any()):
        return None
    return int(differing.to(torch.uint8).argmax()) // size


def _index(position: int, sizes: Sequence[int]) -> tuple[int, ...]:
    index = []
    for size in reversed(sizes):
        position, along = divmod(position, size)
        index.append(along)
    return tuple(reversed(index))
