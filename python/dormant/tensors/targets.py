"""What operations on tensors may be given, and under which names its parts go."""

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
    """A mapping whose tensors are made anew at each access: what is done to one is lost with it."""


def roots_of(target: Target, operation: str, *, changes: bool = False) -> list[tuple[str, object]]:
    """Names what `target` consists of; a module's own names need no prefix.

    Args:
        target: a module, a tensor, a mapping such as a state dict or a checkpoint, or an iterable
            of these. An iterator is consumed.
        operation: who asks, for the message.
        changes: whether it changes the tensors, so that they must not be made anew at each access.

    Returns:
        (name, object) pairs.

    Raises:
        TypeError: it is none of these.
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
            hint = " For (name, tensor) pairs pass dict(pairs)." if pair else ""
            raise TypeError(
                f"{operation}: an iterable target must hold modules, tensors or mappings; item "
                f"{position} is a {type(item).__name__}.{hint}"
            )
        roots.extend(_named(f"[{position}]", item, operation, changes))
    return roots


# What an object really is counts (reachable.py): a mock of a tensor is none, and of built-in
# classes the methods of these are called, whatever a subclass makes of them.


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
            f"{operation}: a {kind} makes its tensors anew whenever it is asked for one, so what "
            f"is done to them now would be lost. Keep them: state = dict(checkpoint), then "
            f"dormant.{operation}(state). For a model: dormant.load(model, checkpoint)."
        )
    items = dict.items(item) if issubclass(type(item), dict) else item.items()
    return [(f"{name}.{key}" if name else str(key), value) for key, value in list(items)]
