"""`copy.deepcopy` and `copy.copy` of lazy tensors and modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits

pytestmark = pytest.mark.core


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(30)
        self.register_buffer("left", table[:10])
        self.register_buffer("right", table[10:].view(4, 5).t())
        self.weight = nn.Parameter(torch.randn(5))
        self.tied = self.weight
        self.plain = table


def build(*, lazy: bool) -> Shared:
    torch.manual_seed(1)
    if not lazy:
        return Shared()
    with dormant.lazy_init():
        return Shared()


def parts(model: Shared) -> dict[str, torch.Tensor]:
    return {name: getattr(model, name) for name in ("left", "right", "weight", "plain")}


def test_a_copy_is_lazy_and_equal_and_its_original_untouched() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    duplicate = copy.deepcopy(lazy)
    assert all(dormant.is_lazy(tensor) for tensor in parts(duplicate).values())
    assert all(dormant.is_lazy(tensor) for tensor in parts(lazy).values())
    dormant.materialize(duplicate)
    assert dormant.is_lazy(lazy.plain)
    dormant.materialize(lazy)
    for name, tensor in parts(eager).items():
        assert_same_bits(tensor, getattr(duplicate, name), name)
        assert_same_bits(tensor, getattr(lazy, name), name)
        assert getattr(duplicate, name).stride() == tensor.stride()


def test_views_of_one_storage_stay_views_of_one_copied_storage() -> None:
    lazy = build(lazy=True)
    duplicate = copy.deepcopy(lazy)
    dormant.materialize([lazy, duplicate])
    duplicate.plain.fill_(7.0)
    assert duplicate.left.eq(7.0).all()
    assert duplicate.right.eq(7.0).all()
    assert not lazy.left.eq(7.0).any()
    assert duplicate.tied is duplicate.weight


def test_writes_after_the_copy_do_not_reach_it() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    duplicate = copy.deepcopy(lazy)
    lazy.plain.zero_()
    dormant.materialize([duplicate, lazy])
    assert_same_bits(eager.plain, duplicate.plain)
    assert not lazy.right.any()


def test_a_tensor_and_its_storage_copied_together_share_the_copy() -> None:
    with dormant.lazy_init():
        tensor = torch.arange(6.0)
    for order in (slice(None), slice(None, None, -1)):
        pair = [tensor, tensor.untyped_storage()][order]
        first, second = copy.deepcopy(pair)[order]
        assert first.untyped_storage()._cdata == second._cdata
        assert first.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_gradient_requires_grad_and_attributes_are_copied() -> None:
    def make() -> Any:
        tensor: Any = torch.ones(3, requires_grad=True)
        tensor.grad = torch.full((3,), 2.0)
        tensor.note = ["text", torch.zeros(1)]
        return tensor

    with dormant.lazy_init():
        lazy = make()
    duplicate = copy.deepcopy(lazy)
    assert duplicate.requires_grad
    assert duplicate.is_leaf
    assert duplicate.note[0] == "text"
    assert duplicate.note[1] is not lazy.note[1]
    assert duplicate.grad is not lazy.grad
    assert dormant.is_lazy(duplicate)
    assert duplicate.grad.tolist() == [2.0, 2.0, 2.0]
    assert duplicate.tolist() == [1.0, 1.0, 1.0]


def test_conjugate_views_stay_conjugate() -> None:
    def make() -> torch.Tensor:
        torch.manual_seed(0)
        return torch.randn(4, dtype=torch.complex64).conj()

    with dormant.lazy_init():
        lazy = make()
    duplicate = copy.deepcopy(lazy)
    assert duplicate.is_conj() == lazy.is_conj()
    dormant.materialize(duplicate)
    assert_same_bits(make().resolve_conj(), duplicate.resolve_conj())


def test_a_parameter_subclass_keeps_its_class_and_attributes() -> None:
    class Special(nn.Parameter):
        pass

    with dormant.lazy_init():
        lazy: Any = Special(torch.ones(2), requires_grad=False)
    duplicate = copy.deepcopy(lazy)
    assert type(duplicate) is Special
    assert not duplicate.requires_grad
    assert dormant.is_lazy(duplicate)


def test_a_tensor_inside_the_graph_is_refused_as_in_eager() -> None:
    with dormant.lazy_init():
        leaf = torch.zeros(3, requires_grad=True)
        inner = leaf.view(3)
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(inner)


def test_a_shallow_copy_shares_the_storage() -> None:
    with dormant.lazy_init():
        lazy = torch.arange(4.0)[1:]
    duplicate = copy.copy(lazy)
    assert dormant.is_lazy(duplicate)
    assert dormant.is_lazy(lazy)
    duplicate[0] = 9.0
    assert lazy.tolist() == [9.0, 2.0, 3.0]
    assert duplicate.tolist() == [9.0, 2.0, 3.0]
