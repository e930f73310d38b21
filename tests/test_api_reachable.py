"""`reachable_tensors`: every way in which an object can hold a tensor."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import itertools
import sys
import unittest.mock
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
from torch import nn

import dormant
from dormant import _C
from dormant.tensors.reachable import reachable_tensors


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("__private", "unset", "value")

    def __init__(self, value: object) -> None:
        self.value = value
        self.__private = value


@dataclasses.dataclass
class Record:
    value: object


def _in_closure(tensor: object) -> object:
    def function() -> object:
        return tensor

    return function


def _in_default(tensor: object) -> object:
    def function(positional: object = tensor, *, keyword: object = None) -> None: ...

    return function


def _in_keyword_default(tensor: object) -> object:
    def function(*, keyword: object = tensor) -> None: ...

    return function


def _in_attribute_of_tensor(tensor: object) -> object:
    holder: Any = torch.zeros(1)
    holder.extra = tensor
    return holder


def _in_gradient(tensor: torch.Tensor) -> object:
    holder = torch.zeros(2, requires_grad=True)
    holder.grad = tensor
    return holder


HOLDERS = {
    "list": lambda t: [1, [t]],
    "tuple": lambda t: (None, (t,)),
    "set": lambda t: {t},
    "deque": lambda t: collections.deque([t]),
    "dict value": lambda t: {"key": {2: t}},
    "dict key": lambda t: {t: 1},
    "ordered dict": lambda t: collections.OrderedDict(key=t),
    "user dict": lambda t: collections.UserDict(key=t),
    "default dict": lambda t: collections.defaultdict(list, {"key": [t]}),
    "object": Plain,
    "slots": Slotted,
    "dataclass": Record,
    "partial argument": lambda t: functools.partial(print, t),
    "partial keyword": lambda t: functools.partial(print, end=t),
    "bound method": lambda t: Plain(t).method,
    "closure": _in_closure,
    "default": _in_default,
    "keyword default": _in_keyword_default,
    "tensor attribute": _in_attribute_of_tensor,
    "gradient": _in_gradient,
    "optimizer": lambda t: torch.optim.SGD([nn.Parameter(t)]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_tensor_is_found_in(holder: str) -> None:
    tensor = torch.arange(2.0)
    root = HOLDERS[holder](tensor)
    found = {found.data_ptr() for _, found in reachable_tensors(root)}
    assert tensor.data_ptr() in found


def test_a_module_is_followed_by_its_own_names() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])
            self.register_buffer("kept", torch.zeros(1))
            self.register_buffer("hidden", torch.zeros(1), persistent=False)
            self.plain = {"table": [torch.zeros(1)]}
            self.none = None

    names = [name for name, _ in reachable_tensors(Model())]
    assert sorted(names) == [
        "hidden",
        "kept",
        "layers.0.bias",
        "layers.0.weight",
        "plain.table[0]",
    ]


def test_a_tied_tensor_comes_under_each_of_its_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    found = list(reachable_tensors(model))
    assert [name for name, _ in found] == ["0.weight", "1.weight"]
    assert found[0][1] is found[1][1]


def test_a_script_module_is_followed() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    found = {tensor.data_ptr() for _, tensor in reachable_tensors(scripted)}
    assert {parameter.data_ptr() for parameter in scripted.parameters()} <= found


def test_a_view_that_left_the_graph_is_followed() -> None:
    # FSDP1's parameters are such views: one of several made at once, their base written since.
    base = torch.ones(4, requires_grad=True) * 2
    view, _ = base.chunk(2)
    base.add_(1)
    with pytest.raises(RuntimeError, match="multiple views"):
        print(view.is_leaf)
    assert [found is view for _, found in reachable_tensors([view])] == [True]


def test_cycles_end() -> None:
    tensor = torch.zeros(1)
    first, second = Plain(tensor), Plain(None)
    second.value = [first, second]
    first.back = second  # type: ignore[attr-defined]
    assert [found is tensor for _, found in reachable_tensors(second)] == [True]


def test_depth_is_not_limited_by_recursion() -> None:
    root: object = torch.zeros(1)
    for _ in range(50_000):
        root = [root]
    assert len(list(reachable_tensors(root))) == 1


def test_no_property_and_no_getattr_is_run() -> None:
    class Trap:
        @property
        def explosive(self) -> object:
            raise AssertionError("a property was run")

        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"__getattr__ was run for {name}")

    assert list(reachable_tensors([Trap(), Slotted(None)])) == []


def test_modules_and_classes_are_not_followed() -> None:
    class Holder:
        table = torch.zeros(1)

    assert list(reachable_tensors([torch, Holder])) == []


def test_what_is_registered_comes_first_and_by_its_own_name() -> None:
    # FSDP2's state hangs on hooks of every module and leads to all of them.
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_forward_hook(Plain(model).method)
    model[0].neighbors = [[model[1]]]
    names = [name for name, _ in reachable_tensors(model)]
    assert names[:4] == [name for name, _ in model.named_parameters()]


# What hangs on a module is anybody's. Each of these holds a tensor that has to be found, and a
# method that must not run.


def _refuse(*args: object, **options: object) -> NoReturn:
    raise RuntimeError("a method of the object was run")


def _forever(*args: object, **options: object) -> Iterator[int]:
    return itertools.repeat(0)


def _hostile(base: type, method: Callable[..., Any]) -> type:
    names = ("__len__", "__iter__", "__getitem__", "__contains__", "__reversed__", "__bool__")
    others = ("keys", "values", "items", "__eq__", "__getattribute__", "__getattr__", "__repr__")
    overridden = dict.fromkeys((*names, *others), method) | {"__hash__": object.__hash__}
    return type(f"Hostile_{base.__name__}", (base,), overridden)


class LyingMeta(type):
    def __hash__(cls) -> int:
        raise RuntimeError("a type was hashed")

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("a type was compared")

    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("a type was asked for an instance")


class OfLyingType(metaclass=LyingMeta):
    def __init__(self, value: object) -> None:
        self.value = value


class PropertyForDict:
    def __init__(self, value: object) -> None:
        object.__setattr__(self, "value", value)

    @property
    def __dict__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("__dict__ was asked for")


class LyingDict(PropertyForDict):
    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        return {"value": 1}


class RaisingClass:
    def __init__(self, value: object) -> None:
        self.value = value

    @property
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("__class__ was asked for")


class LyingClass(RaisingClass):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        return torch.Tensor


class Named(NamedTuple):
    value: object
    other: int = 0


@dataclasses.dataclass(slots=True)
class SlottedRecord:
    value: object


def _subclassed_tensor(tensor: torch.Tensor) -> object:
    class Refusing(torch.Tensor):
        grad = property(_refuse)  # type: ignore[assignment]
        is_leaf = property(_refuse)  # type: ignore[assignment]

        @classmethod
        def __torch_function__(cls, *args: object, **options: object) -> NoReturn:
            _refuse()

    return tensor.as_subclass(Refusing)


def _custom_attributes_dict(tensor: torch.Tensor) -> object:
    holder = Plain(None)
    holder.__dict__ = _hostile(dict, _refuse)({"value": tensor})
    return holder


ODD_HOLDERS: dict[str, Callable[[torch.Tensor], object]] = {
    **{
        f"{base.__name__} whose methods {what}": lambda t, b=base, m=method: _hostile(b, m)([t])
        for base in (list, tuple, set, frozenset, collections.deque)
        for what, method in (("raise", _refuse), ("never end", _forever))
    },
    **{
        f"{base.__name__} whose methods {what}": lambda t, b=base, m=method: _hostile(b, m)(
            {"key": t}
        )
        for base in (dict, collections.OrderedDict, collections.Counter)
        for what, method in (("raise", _refuse), ("never end", _forever))
        if base is dict or method is _refuse
    },
    "__dict__ that raises": PropertyForDict,
    "__dict__ that lies": LyingDict,
    "__class__ that raises": RaisingClass,
    "__class__ that lies": LyingClass,
    "type that raises": OfLyingType,
    "named tuple": Named,
    "dataclass with slots": SlottedRecord,
    "tensor that refuses": _subclassed_tensor,
    "mock": lambda t: unittest.mock.MagicMock(held=t),
    "attributes in a dict that raises": _custom_attributes_dict,
}
# OrderedDict and Counter call their own methods when they are built.
for _name in [name for name in ODD_HOLDERS if name.startswith(("OrderedDict", "Counter"))]:
    del ODD_HOLDERS[_name]


@pytest.mark.parametrize("holder", ODD_HOLDERS)
def test_a_tensor_is_found_and_nothing_run_in_a(holder: str) -> None:
    tensor = torch.arange(2.0)
    root = ODD_HOLDERS[holder](tensor)
    found = [_C.storage_id(found) for _, found in reachable_tensors([root])]
    assert _C.storage_id(tensor) in found


@pytest.mark.parametrize("holder", ODD_HOLDERS)
def test_a_model_comes_to_life_that_holds_a(holder: str) -> None:
    with dormant.lazy_init():
        model = nn.Linear(2, 2)
        tensor = torch.ones(3)
    model.held = (ODD_HOLDERS[holder](tensor), [1])
    assert dormant.summary(model).bytes_after == 24 + 12
    dormant.materialize(model)
    assert not dormant.is_lazy(model)
    assert not dormant.is_lazy(tensor)
    dormant.load(model, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)})


def _dead_proxy(tensor: torch.Tensor) -> object:
    holder = Plain(tensor)
    return weakref.proxy(holder)


NOT_FOLLOWED: dict[str, Callable[[torch.Tensor], object]] = {
    "proxy": weakref.proxy,
    "reference": weakref.ref,
    "dead proxy": _dead_proxy,
    "mock of a tensor": lambda t: unittest.mock.MagicMock(spec=torch.Tensor),
    "mock of a parameter": lambda t: unittest.mock.Mock(spec=nn.Parameter),
    "mock of a module": lambda t: unittest.mock.MagicMock(spec=nn.Linear),
}


@pytest.mark.parametrize("holder", NOT_FOLLOWED)
def test_what_only_looks_like_a_tensor_is_none(holder: str) -> None:
    tensor = torch.zeros(1)
    model = nn.Linear(2, 2)
    vars(model)["held"] = NOT_FOLLOWED[holder](tensor)  # setattr would ask isinstance
    assert [name for name, _ in reachable_tensors(model)] == ["weight", "bias"]
    dormant.summary(model)
    dormant.materialize(model)


def test_a_mock_may_stand_for_a_submodule() -> None:
    with dormant.lazy_init():
        model = nn.Sequential(nn.Linear(2, 2), unittest.mock.MagicMock(spec=nn.Linear))
    dormant.summary(model)
    dormant.materialize(model)
    assert not dormant.is_lazy(model)


class Small:
    def __init__(self, *held: object) -> None:
        self.number, self.name, self.held = 1, "x", held


class SmallSlots:
    __slots__ = ("a", "b")

    def __init__(self, *held: object) -> None:
        self.a, self.b = 1, held


def _nested(inner: object, depth: int) -> object:
    """`inner` behind so many objects, each of another kind."""
    around: list[Callable[[object], object]] = [
        lambda x: [1, x],
        lambda x: ("a", x),
        lambda x: {"a": None, "b": x},
        Small,
        SmallSlots,
        lambda x: collections.deque([x]),
        lambda x: functools.partial(print, x),
        lambda x: lambda: x,
    ]
    for i in range(depth):
        inner = around[i % len(around)](inner)
    return inner


@pytest.mark.parametrize("depth", range(12))
def test_only_what_cannot_hold_a_tensor_is_passed_over(depth: int) -> None:
    tensor = torch.zeros(1)
    many = [_nested(i, depth) for i in range(30)]
    for place in (0, 17, 29):
        holder = [*many[:place], _nested(tensor, depth), *many[place + 1 :]]
        assert [found is tensor for _, found in reachable_tensors(Small(holder))] == [True], place
    assert list(reachable_tensors(many)) == []


@pytest.mark.parametrize("size", [1, 10, 60, 61, 62, 63, 64, 65, 66, 100, 1000])
@pytest.mark.parametrize("kind", [list, tuple, set, collections.deque, Small, dict.fromkeys])
def test_a_tensor_behind_many_numbers_is_found(kind: Callable[..., Any], size: int) -> None:
    tensor = torch.zeros(1)
    numbers = [*range(size), tensor]
    holder = kind(*numbers) if kind is Small else kind(numbers)
    assert [found is tensor for _, found in reachable_tensors([[holder], 1])] == [True]


def test_what_is_referred_to_from_everywhere_is_walked_once() -> None:
    looked_at = 0

    shared = [Small(i) for i in range(1000)]
    holders = [Small(shared) for _ in range(1000)]
    profile = sys.getprofile()

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal looked_at
        looked_at += 1

    sys.setprofile(count)
    try:
        assert list(reachable_tensors(holders)) == []
    finally:
        sys.setprofile(profile)
    assert looked_at < 100_000  # each of them from each would be a million


@pytest.mark.skipif(sys.version_info < (3, 11), reason="every object has one there")
def test_attributes_get_no_dictionary_by_being_looked_at() -> None:
    small = Small(1)
    positions = _C.holders([small, 1, "a", None, [small], torch.zeros(1)], (torch.Tensor,), (type,))
    assert positions == [5]
    assert not any(type(held) is dict for held in gc.get_referents(small))


def test_iterators_are_not_consumed() -> None:
    tensor = torch.zeros(1)
    iterators = [iter([tensor]), (each for each in [tensor]), map(_refuse, [tensor])]
    assert list(reachable_tensors(iterators)) == []
    assert next(iterators[0]) is tensor
    assert next(iterators[1]) is tensor


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except TypeError:
        return True
    return False


def _takes_tensors(function: Any) -> bool:
    arguments = (function.__doc__ or "").partition("->")[0]
    return "Tensor" in arguments or "UntypedStorage" in arguments


BINDINGS = [name for name in dir(_C) if _takes_tensors(getattr(_C, name))]


def test_every_binding_refuses_what_is_no_tensor() -> None:
    mock, proxied = unittest.mock.MagicMock(spec=torch.Tensor), torch.zeros(4)
    proxy = weakref.proxy(proxied)
    quantizer = _C.Int8Rows()
    calls: dict[str, Callable[[Any], object]] = {
        "check_write_budget": lambda x: _C.check_write_budget([x], 1 << 20),
        "load": lambda x: _C.load(b"", [x]),
        "materialize": lambda x: _C.materialize([proxied, x], "exact", None),
        "quantize": lambda x: _C.quantize(x, quantizer),
        "quantize_now": lambda x: _C.quantize_now(x, quantizer, 1),
        "view_as": lambda x: _C.view_as(x, torch.float32, [1], [1], 0),
        "write": lambda x: _C.write([(x, 0)], 0, "", None),
    }
    assert len(BINDINGS) > 15
    for name in BINDINGS:
        for odd in (mock, proxy, LyingClass(1), unittest.mock.Mock(spec=torch.UntypedStorage)):
            call = calls.get(name, getattr(_C, name))
            assert _refuses(lambda c=call, o=odd: c(o)), (name, type(odd))  # type: ignore[misc]
    for odd in (mock, proxy, LyingClass(1)):
        assert _refuses(lambda o=odd: _C.HeldTensors([o]))  # type: ignore[misc]
        assert _refuses(lambda o=odd: _C.FourBit("nf4", 64, o))  # type: ignore[misc]
        assert _refuses(lambda o=odd: _C.FourBit("nf4", 64, torch.zeros(16), o))  # type: ignore[misc]
        assert _refuses(lambda o=odd: _C.quantize(torch.zeros(2, 2), quantizer, [o]))  # type: ignore[misc]


def test_no_binding_uses_the_conversion_that_believes_mocks() -> None:
    # csrc/bindings/arguments.h calls what it converts "Tensor", PyTorch "torch.Tensor".
    everything = [
        *vars(_C).values(),
        *(member for kind in (_C.HeldTensors, _C.FourBit) for member in vars(kind).values()),
    ]
    for function in everything:
        arguments = (getattr(function, "__doc__", None) or "").partition("->")[0]
        assert "torch.Tensor" not in arguments, arguments
        assert "torch.Storage" not in arguments, arguments
