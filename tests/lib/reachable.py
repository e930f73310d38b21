"""What an object holds: every tensor, generator and number that can be reached from it, by name.

This is deliberately independent of the traversal that `dormant.materialize` does, so that a tensor
which the package forgets is one that the tests still find.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch.utils.hooks import RemovableHandle

# Values that say where an object lives or how often something ran, never what was built.
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, RemovableHandle, torch.dtype)
_CONSTANTS = (bool, int, float, complex, numpy.generic, numpy.ndarray)


@dataclass
class Holdings:
    """Everything found under one root; a tensor held twice has two names."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    generators: dict[str, torch.Generator] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


def _attributes(item: object) -> Iterator[tuple[str, object]]:
    yield from getattr(item, "__dict__", {}).items()
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(item, name):
                yield name, getattr(item, name)


def _children(item: Any) -> Iterator[tuple[str, object]]:
    """Names and values directly under `item`, in a fixed order."""
    if isinstance(item, torch.nn.Module):
        for name, value in item.__dict__.items():
            if name in ("_parameters", "_buffers", "_modules"):
                yield from value.items()
            else:
                yield name, value
    elif isinstance(item, Mapping):
        # Hooks are keyed by a process-wide counter: only a string names the same entry twice.
        for position, (key, value) in enumerate(item.items()):
            yield (key if isinstance(key, str) else f"[{position}]"), value
    elif isinstance(item, (list, tuple, deque)):
        for position, value in enumerate(item):
            yield f"[{position}]", value
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return
    elif isinstance(item, functools.partial):
        yield from (("func", item.func), ("args", item.args), ("keywords", item.keywords))
    elif isinstance(item, types.MethodType):
        yield "self", item.__self__
    elif isinstance(item, types.FunctionType):
        for position, cell in enumerate(item.__closure__ or ()):
            try:
                yield f"<cell {position}>", cell.cell_contents
            except ValueError:  # a variable that was never assigned
                continue
    elif not isinstance(item, (str, bytes, torch.Size, set, frozenset)):
        yield from _attributes(item)


def _inner(tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors a wrapper subclass is made of; nothing for an ordinary tensor."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(
        tensor, "__tensor_flatten__"
    ):
        for name in tensor.__tensor_flatten__()[0]:
            yield name, getattr(tensor, name)


def holdings(root: object) -> Holdings:
    """Collects what `root` holds.

    Args:
      root: a module, a tensor, or any nesting of containers and plain objects.

    Returns:
      Tensors under every name they are held by (`.grad` included); generators and numbers under
      the first.
    """
    found = Holdings()
    seen: dict[int, object] = {}  # holds the visited alive: an id is unique only that long
    pending: list[tuple[str, object]] = [("", root)]
    while pending:
        name, item = pending.pop()
        if isinstance(item, torch.Tensor):
            inner = list(_inner(item))
            if not inner:
                found.tensors[name or "<root>"] = item
            if id(item) in seen:
                continue
            seen[id(item)] = item
            children: list[tuple[str, object]] = [*inner, *item.__dict__.items()]
            if item.is_leaf and item.grad is not None:
                children.append(("grad", item.grad))
        elif isinstance(item, torch.Generator):
            found.generators[name] = item
            continue
        elif isinstance(item, _CONSTANTS):
            found.constants[name] = item
            continue
        elif item is None or isinstance(item, _OPAQUE) or id(item) in seen:
            continue
        else:
            seen[id(item)] = item
            children = list(_children(item))
        pending.extend(
            (f"{name}.{key}" if name else key, value) for key, value in reversed(children)
        )
    return found
