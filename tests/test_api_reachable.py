"""`reachable_tensors`: every way in which an object can hold a tensor."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import nn

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
