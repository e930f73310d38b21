"""Every tensor that an object holds, however it holds it."""

from __future__ import annotations

import functools
import logging
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator

import torch

# Nothing of these types leads to a tensor of the model; most objects met are one of them.
_LEAVES = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        bytearray,
        range,
        slice,
        torch.Size,
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
        torch.Generator,
        types.BuiltinFunctionType,
        types.CodeType,
        weakref.ref,
    }
)
# Most containers of a module, those of its hooks among them, are empty.
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set, frozenset})
# Process-wide objects: following them would leave the model.
_OUTSIDE = (type, types.ModuleType, logging.Logger)


def reachable_tensors(root: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every tensor under `root` once for every name that leads to it first.

    Followed are modules (parameters, buffers, submodules, all other attributes), dicts (keys too),
    lists, tuples, sets, deques, attributes and slots of any object, partials, bound methods, and
    functions' closures and defaults, but no module-level names; of tensors, `.grad`, python
    attributes and the tensors a wrapper subclass is made of. Cycles are fine and nothing recurses.

    Args:
        root: any object.
        name: the name of `root`; names below it are joined to it.

    Yields:
        (name, tensor), depth first in the order of definition. A tensor held under two names comes
        twice; what lies below an object comes under the first name only.
    """
    # Keeps what was visited alive: an id is unique only that long, and some are made on the fly.
    seen: dict[int, object] = {}
    pending: list[tuple[str, object]] = [(name, root)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, torch.Tensor):
            yield path, item
        if id(item) in seen:
            continue
        seen[id(item)] = item
        below = [
            (_join(path, key), value)
            for key, value in _children(item)
            if type(value) not in _LEAVES
            and (type(value) not in _CONTAINERS or value)
            and not isinstance(value, _OUTSIDE)
        ]
        pending.extend(reversed(below))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and not key.startswith("[") else path + key


def _children(item: object) -> Iterator[tuple[str, object]]:
    if isinstance(item, torch.Tensor):
        gradient = _gradient(item)
        if gradient is not None:
            yield "grad", gradient
    elif isinstance(item, torch.nn.Module):
        yield from _module_children(item)
        return
    elif isinstance(item, dict):
        for position, (key, value) in enumerate(list(dict.items(item))):
            if type(key) not in _LEAVES:
                yield f"[key {position}]", key
            yield (key if type(key) is str else f"[{position}]"), value
    elif isinstance(item, (list, tuple, set, frozenset, deque)):
        for position, value in enumerate(list(item)):
            yield f"[{position}]", value
    elif isinstance(item, functools.partial):
        yield from (("func", item.func), ("args", item.args), ("keywords", item.keywords))
    elif isinstance(item, types.MethodType):
        yield from (("__self__", item.__self__), ("__func__", item.__func__))
        return
    elif isinstance(item, types.FunctionType):
        yield from (("__defaults__", item.__defaults__), ("__kwdefaults__", item.__kwdefaults__))
        for position, cell in enumerate(item.__closure__ or ()):
            try:
                yield f"[closure {position}]", cell.cell_contents
            except ValueError:  # a variable that was never assigned
                continue
    yield from _attributes(item)


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    # A subclass may refuse to be asked (UninitializedParameter); inside the graph asking warns.
    with torch._C.DisableTorchFunctionSubclass():
        try:
            held = tensor.is_leaf or tensor.retains_grad
        except RuntimeError:
            # One of several views made at once (split, chunk), its base changed in place since,
            # as FSDP1's parameters are: it left the graph, and even is_leaf refuses.
            return None
        return tensor.grad if held else None


def _module_children(module: torch.nn.Module) -> Iterator[tuple[str, object]]:
    if isinstance(module, torch.jit.ScriptModule):
        # Its tensors live in C++; the dictionaries are proxies of them.
        yield from module.named_parameters(recurse=False)
        yield from module.named_buffers(recurse=False)
        yield from module.named_children()
    for key, value in _attributes(module):
        if key in ("_parameters", "_buffers", "_modules") and isinstance(value, dict):
            yield from list(value.items())
        else:
            yield key, value


def _attributes(item: object) -> Iterator[tuple[str, object]]:
    """Instance attributes and slots, read without running any property or __getattr__."""
    try:
        attributes = object.__getattribute__(item, "__dict__")
    except AttributeError:
        attributes = None
    if isinstance(attributes, dict):
        yield from list(attributes.items())
    for name, slot in _slots(type(item)):
        try:
            yield name, slot.__get__(item)
        except AttributeError:  # a slot that was never assigned
            continue


_Slots = tuple[tuple[str, types.MemberDescriptorType], ...]
_slots_of: weakref.WeakKeyDictionary[type, _Slots] = weakref.WeakKeyDictionary()


def _slots(kind: type) -> _Slots:
    slots = _slots_of.get(kind)
    if slots is None:
        slots = tuple(
            (name, slot)
            for base in kind.__mro__
            if "__slots__" in vars(base)
            for name, slot in list(vars(base).items())
            if isinstance(slot, types.MemberDescriptorType)
        )
        _slots_of[kind] = slots
    return slots
