"""`_version` counts as in eager, through views, data and every kind of write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import dormant
from compare import compare

WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "none": lambda t: None,
    "fill_": lambda t: t.fill_(1),
    "zero_": lambda t: t.zero_(),
    "normal_": lambda t: t.normal_(),
    "uniform_": lambda t: t.uniform_(),
    "bernoulli_": lambda t: t.bernoulli_(0.5),
    "copy_": lambda t: t.copy_(torch.ones(4, 6)),
    "copy_lazy": lambda t: t.copy_(torch.randn(4, 6)),
    "add_": lambda t: t.add_(1).mul_(2),
    "iadd": lambda t: t.__iadd__(1),
    "setitem": lambda t: t.__setitem__(0, 1.0),
    "setitem_tensor": lambda t: t.__setitem__((slice(None), 1), torch.rand(4)),
    "index_put": lambda t: t.__setitem__(torch.tensor([1, 2]), 3.0),
    "masked_fill_": lambda t: t.masked_fill_(t > 0, 0),
    "view_write": lambda t: t[1:].mul_(2),
    "deep_view_write": lambda t: t.t()[1:3][:, 0].fill_(2),
    "view_made_before": lambda t: (t.view(-1).zero_(), t.select(0, 1).fill_(1)),
    "detach_write": lambda t: t.detach().add_(1),
    "data_write": lambda t: t.data.add_(1),
    "data_replaced": lambda t: setattr(t, "data", torch.ones(4, 6)),
    "out": lambda t: torch.sin(torch.ones(4, 6), out=t),
    "clamp_": lambda t: t.clamp_(-1, 1),
    "resize_": lambda t: t.resize_(2, 3),
    "resize_same": lambda t: t.resize_(4, 6),
    "set_": lambda t: t.set_(torch.zeros(3)),
    "transpose_": lambda t: t.transpose_(0, 1),
    "unsqueeze_": lambda t: t.unsqueeze_(0),
    "as_strided_": lambda t: t.as_strided_((2, 2), (1, 1)),
    "requires_grad_": lambda t: t.requires_grad_(False),
    "item": lambda t: t[0, 0].item(),
    "numpy": lambda t: t.numpy().fill(3),
    "trunc_normal_": lambda t: nn.init.trunc_normal_(t, std=0.02),
    "trunc_normal_near": lambda t: nn.init.trunc_normal_(t),
    "orthogonal_": nn.init.orthogonal_,
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "squeeze_chain": lambda t: t.unsqueeze(0).squeeze(0).zero_(),
    "swap": lambda t: torch.utils.swap_tensors(t, torch.randn(4, 6)),
}


@pytest.mark.parametrize("kind", ["empty", "zeros", "randn", "view", "parameter"])
@pytest.mark.parametrize("write", WRITES)
def test_version_after(write: str, kind: str) -> None:
    def build() -> list[torch.Tensor]:
        base = torch.zeros(5, 6)
        tensor = {
            "empty": lambda: torch.empty(4, 6).fill_(2),
            "zeros": lambda: torch.zeros(4, 6),
            "randn": lambda: torch.randn(4, 6),
            "view": lambda: base[1:],
            "parameter": lambda: nn.Parameter(torch.randn(4, 6), requires_grad=False),
        }[kind]()
        alias = tensor.detach()
        with torch.no_grad():
            WRITES[write](tensor)
        return [base, tensor, alias]

    compare(build, expect_lazy=None)


@pytest.mark.core
def test_materializing_does_not_count_as_a_write() -> None:
    with dormant.lazy_init():
        model = nn.Linear(4, 4)
    before = [p._version for p in model.parameters()]
    dormant.materialize(model)
    assert [p._version for p in model.parameters()] == before


def test_a_value_saved_for_backward_and_written_later_is_refused_as_in_eager() -> None:
    with dormant.lazy_init():
        weight = nn.Parameter(torch.randn(3))
        factor = torch.randn(3)
    product = (weight * factor).sum()
    factor.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_backward_works_when_only_materializing_came_between() -> None:
    with dormant.lazy_init():
        weight = nn.Parameter(torch.randn(3))
        other = torch.randn(3)
    product = (weight * 2).sum()
    dormant.materialize([weight, other])
    product.backward()
    assert weight.grad.tolist() == [2.0] * 3
