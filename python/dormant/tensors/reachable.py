"""Finds every tensor that an object holds, in any way, without running any code of the object.

A module may hold any objects: containers whose methods raise or never end, and objects that lie
about their class. Therefore, the class of an object is what `type` says, containers are traversed
by the methods of the built-in class they derive from, and attributes are read where the interpreter
stores them.
"""

from __future__ import annotations

import collections
import functools
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch

from dormant._extension import _C

# A position has a name like "[3]".
_Key: TypeAlias = "str | int"
# Names and their values; a value whose name is not a string is named by its position.
_Group: TypeAlias = "tuple[Sequence[object], list[Any]]"
_Held: TypeAlias = "Iterable[_Group]"
# The keys from the root, innermost last; joined only if a tensor is found.
_Path: TypeAlias = "tuple[_Path, _Key] | None"


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether `value` really is a tensor; `isinstance` also accepts mocks and proxies."""
    return issubclass(type(value), torch.Tensor)


def is_module(value: object) -> TypeGuard[torch.nn.Module]:
    """Whether `value` really is a module."""
    return issubclass(type(value), torch.nn.Module)


def only_part(wrapper: torch.Tensor) -> torch.Tensor | None:
    """The tensor of which a wrapper subclass consists; None if there are several, or none."""
    held = _pairs(_held_by(wrapper, _examine(type(wrapper))))
    parts = [value for key, value in held if key != "grad" and is_tensor(value)]
    return parts[0] if len(parts) == 1 else None


def reachable_tensors(root: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every tensor under `root`, once for every name that leads to it first.

    It follows modules (parameters, buffers, submodules, all other attributes), dicts (also keys),
    lists, tuples, sets, deques, attributes and slots of any object, partials, bound methods, and
    functions' closures and defaults, but not module-level names. For tensors, it follows `.grad`,
    Python attributes and the tensors that a wrapper subclass is made of. It does not follow weak
    references or consume iterators. Cycles are allowed, nothing recurses, and no method of the
    objects runs.

    Args:
        root: any object.
        name: the name of `root`, which is a prefix of the names below it.

    Yields:
        (name, tensor), depth first in the order of definition. Attributes of modules that are not
        registered come after everything that is registered, so tensors of a state dict come first
        under their names there. A tensor that is held under two names comes twice; tensors below an
        object come under its first name only.
    """
    kinds = dict(_KNOWN)
    # Keeps visited objects alive, because an id is unique only as long as its object exists.
    seen: dict[int, object] = {}
    start: _Path = (None, name)
    pending: list[tuple[_Path, Any]] = [(start, root)]
    others: collections.deque[tuple[_Path, torch.nn.Module]] = collections.deque()
    while pending or others:
        if pending:
            path, item = pending.pop()
            kind = _kind_of(item, kinds)
            if kind.is_tensor:
                yield _joined(path), item
            if id(item) in seen:
                continue
            seen[id(item)] = item
            if kind.is_module:
                others.append((path, item))
                held = _registered(item)
            else:
                held = _held_by(item, kind)
        else:
            path, item = others.popleft()
            held = _unregistered(item, _kind_of(item, kinds))
        found: list[tuple[_Path, Any]] = []
        for keys, values in held:
            for position in _C.holders(values, _FOLLOWED, _OUTSIDE):
                found.append(((path, _name(keys, position)), values[position]))
        found.reverse()
        pending += found


def _joined(path: _Path) -> str:
    keys: list[_Key] = []
    while path is not None:
        path, key = path
        keys.append(key)
    name = ""
    for key in reversed(keys):
        part = f"[{key}]" if type(key) is int else str(key)
        name += f".{part}" if name and not part.startswith("[") else part
    return name


class _Kind(NamedTuple):
    """What is known about a type.

    Attributes:
        type: the type itself, whose id is unique as long as this object exists.
        elements: returns what an object of the type holds besides its attributes.
        has_attributes: whether its objects have a dictionary of attributes.
        slots: the attributes that are not in this dictionary.
        is_tensor: whether it is a tensor.
        is_module: whether it is a module.
    """

    type: type
    elements: Callable[[Any], _Held] | None = None
    has_attributes: bool = False
    slots: tuple[tuple[str, Any], ...] = ()
    is_tensor: bool = False
    is_module: bool = False


def _kind_of(item: object, kinds: dict[int, _Kind]) -> _Kind:
    # By id: the metaclass of a type may have a __hash__ that raises.
    kind = type(item)
    known = kinds.get(id(kind))
    if known is None:
        known = kinds[id(kind)] = _examine(kind)
    return known


def _examine(kind: type) -> _Kind:
    if issubclass(kind, _OUTSIDE):
        return _Kind(kind)
    return _Kind(
        kind,
        elements=next((held for base, held in _ELEMENTS if issubclass(kind, base)), None),
        has_attributes=_DICT_OFFSET(kind) != 0,
        slots=_slots(kind),
        is_tensor=issubclass(kind, torch.Tensor),
        is_module=issubclass(kind, torch.nn.Module),
    )


def _slots(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, slot)
        for base in _MRO(kind)
        if "__slots__" in _NAMESPACE(base)
        for name, slot in list(_NAMESPACE(base).items())
        if type(slot) is types.MemberDescriptorType
    )


def _held_by(item: Any, kind: _Kind, without: Sequence[str] = ()) -> Iterator[_Group]:
    if kind.elements is not None:
        yield from kind.elements(item)
    if kind.has_attributes:
        yield from _named(_C.attributes(item), without)
    for name, slot in kind.slots:
        try:
            yield (name,), [slot.__get__(item)]
        except AttributeError:  # a slot that was never assigned
            continue


def _name(keys: Sequence[object], position: int) -> _Key:
    key = keys[position]
    return key if type(key) is str else position


def _pairs(held: _Held) -> Iterator[tuple[_Key, Any]]:
    for keys, values in held:
        yield from ((_name(keys, position), value) for position, value in enumerate(values))


def _group(pairs: Sequence[tuple[object, Any]]) -> tuple[list[object], list[Any]]:
    return [key for key, _ in pairs], [value for _, value in pairs]


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _registered(module: torch.nn.Module) -> Iterator[_Group]:
    if issubclass(type(module), torch.jit.ScriptModule):
        # Its tensors are in C++; the dictionaries are proxies.
        yield _group(list(module.named_parameters(recurse=False)))
        yield _group(list(module.named_buffers(recurse=False)))
        yield _group(list(module.named_children()))
    attributes = _C.attributes(module) or {}
    for registry in _REGISTRIES:
        yield from _named(dict.get(attributes, registry))


def _unregistered(module: torch.nn.Module, kind: _Kind) -> Iterator[_Group]:
    return _held_by(module, kind, without=_REGISTRIES)


def _named(held: Any, without: Sequence[str] = ()) -> Iterator[_Group]:
    if issubclass(type(held), dict):
        # At once: another thread may be changing it.
        items = list(dict.items(held))
        if without:
            items = [
                (key, value)
                for key, value in items
                if type(key) is not str or key not in without or not issubclass(type(value), dict)
            ]
        if items:
            yield _group(items)


def _of_dict(item: dict[Any, Any]) -> Iterator[_Group]:
    keys, values = _group(list(dict.items(item)))
    followed = _C.holders(keys, _FOLLOWED, _OUTSIDE)
    yield [f"[key {position}]" for position in followed], [keys[p] for p in followed]
    yield keys, values


def _of_tensor(tensor: torch.Tensor) -> Iterator[_Group]:
    # A subclass may refuse this (UninitializedParameter), and inside the graph it warns.
    with torch._C.DisableTorchFunctionSubclass():
        try:
            held = _IS_LEAF(tensor) or _RETAINS_GRAD(tensor)
        except RuntimeError:
            # It is one of several views made at once (split, chunk) whose base was changed in place
            # since, like FSDP1's parameters: it left the graph, and even is_leaf refuses.
            return
        gradient = _GRAD(tensor) if held else None
    if gradient is not None:
        yield ("grad",), [gradient]


def _of_function(function: types.FunctionType) -> Iterator[_Group]:
    yield ("__defaults__", "__kwdefaults__"), [function.__defaults__, function.__kwdefaults__]
    for position, cell in enumerate(function.__closure__ or ()):
        try:
            yield (f"[closure {position}]",), [cell.cell_contents]
        except ValueError:  # a variable that was never assigned
            continue


def _of_method(method: types.MethodType) -> _Held:
    return ((("__self__", "__func__"), [method.__self__, method.__func__]),)


def _of_partial(partial: functools.partial[Any]) -> _Held:
    names = ("func", "args", "keywords")
    return ((names, [_PARTIAL[name].__get__(partial) for name in names]),)


def _positions(base: Any) -> Callable[[Any], _Held]:
    def held(item: Any) -> Iterator[_Group]:
        # At once: another thread may be changing it.
        values = list(base.__iter__(item))
        yield range(len(values)), values

    return held


# Process-wide objects, which would lead out of the model. torch.Size holds numbers only.
_OUTSIDE = (type, types.ModuleType, logging.Logger, torch.Size)
# Their tensors may be where the garbage collector does not search.
_FOLLOWED = (torch.Tensor, torch.nn.Module)
_ELEMENTS: tuple[tuple[type, Callable[[Any], _Held]], ...] = (
    (torch.Tensor, _of_tensor),
    (dict, _of_dict),
    *((base, _positions(base)) for base in (list, tuple, set, frozenset, collections.deque)),
    (functools.partial, _of_partial),
    (types.MethodType, _of_method),
    (types.FunctionType, _of_function),
)
# Accessors that a class or its metaclass cannot override.
_MRO: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_NAMESPACE: Callable[[type], Any] = type.__dict__["__dict__"].__get__
_DICT_OFFSET: Callable[[type], int] = type.__dict__["__dictoffset__"].__get__
_PARTIAL = functools.partial.__dict__
_IS_LEAF: Callable[[torch.Tensor], bool] = torch._C.TensorBase.__dict__["is_leaf"].__get__
_RETAINS_GRAD: Callable[[torch.Tensor], bool] = torch._C.TensorBase.__dict__["retains_grad"].__get__
_GRAD: Callable[[torch.Tensor], Any] = torch._C.TensorBase.__dict__["grad"].__get__
# Types that do not change, examined once.
_KNOWN = {
    id(kind): _examine(kind)
    for kind in (torch.Tensor, torch.nn.Parameter, dict, list, tuple, set, frozenset)
}
