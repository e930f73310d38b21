"""The targets that operations on tensors accept, and the names of their parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch

from dormant.tensors.reachable import is_module, is_tensor

Target: TypeAlias = (
    "torch.nn.Module | torch.Tensor | Mapping[str, object] | "
    "Iterable[torch.nn.Module | torch.Tensor | Mapping[str, object]]"
)


class MadeAnew:
    """A mapping that creates a new tensor for each access, so changes to a tensor are not kept."""


def roots_of(target: Target, operation: str, *, changes: bool = False) -> list[tuple[str, object]]:
    """Names the parts of `target`; the names of a module get no prefix.

    Args:
        target: a module, a tensor, a mapping such as a state dict or a checkpoint, or an iterable
            of these. An iterator is consumed.
        operation: the operation that the user called, for messages.
        changes: whether the operation changes the tensors, so that a mapping must not create new
            tensors for each access.

    Returns:
        (name, object) pairs.

    Raises:
        TypeError: the target is none of these.
    """
    if _is_single(target):
        return _named("", target, operation, changes)
    if not issubclass(type(target), Iterable) or issubclass(type(target), (str, bytes)):
        raise TypeError(
            f"{operation}: target must be a module, a tensor, a mapping such as a state dict, or "
            f"an iterable of these; got {type(target).__name__}."
        )
    roots: list[tuple[str, object]] = []
    for position, item in enumerate(_elements(target)):
        if not _is_single(item):
            pair = issubclass(type(item), tuple)
            hint = " For (name, tensor) pairs, pass dict(pairs)." if pair else ""
            raise TypeError(
                f"{operation}: an iterable target must contain modules, tensors or mappings, but "
                f"item {position} is a {type(item).__name__}.{hint}"
            )
        roots.extend(_named(f"[{position}]", item, operation, changes))
    return roots


# The real class of an object is used (reachable.py): a mock of a tensor is not a tensor, and for
# subclasses of built-in classes, the methods of the built-in class are called.


def _is_single(item: object) -> bool:
    return is_tensor(item) or is_module(item) or issubclass(type(item), Mapping)


def _elements(iterable: Any) -> Iterator[object]:
    for base in (list, tuple, set, frozenset, deque):
        if issubclass(type(iterable), base):
            return base.__iter__(iterable)
    return iter(iterable)


def _named(name: str, item: Any, operation: str, changes: bool) -> list[tuple[str, object]]:
    if not issubclass(type(item), Mapping):
        return [(name or ("tensor" if is_tensor(item) else ""), item)]
    if changes and issubclass(type(item), MadeAnew):
        kind = type(item).__name__
        raise TypeError(
            f"{operation}: a {kind} creates a new tensor for each access, so the result would be "
            f"lost. Keep the tensors: state = dict(checkpoint), then dormant.{operation}(state). "
            "To load a model, call dormant.load(model, checkpoint)."
        )
    items = dict.items(item) if issubclass(type(item), dict) else item.items()
    return [(f"{name}.{key}" if name else str(key), value) for key, value in list(items)]
