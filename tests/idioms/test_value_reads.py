"""Construction that looks at values, and values that come from outside torch."""

from __future__ import annotations

import io
import math
import random
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import dormant
from compare import compare
from idiom import Idiom, Idioms

idiom = Idioms()


@idiom(expect_lazy=0.9, reads="item of a small schedule", marks=(pytest.mark.core,))
def stochastic_depth_rates_from_a_linspace() -> nn.Module:
    model = nn.Module()
    model.rates = [rate.item() for rate in torch.linspace(0, 0.3, 8)]
    model.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in model.rates)
    for block, rate in zip(model.blocks, model.rates, strict=True):
        nn.init.normal_(block.weight, std=0.02 + rate)
    return model


@idiom(expect_lazy=0.9, reads="item of one drawn value")
def a_drawn_value_becomes_a_python_number() -> nn.Module:
    model = nn.Linear(32, 32)
    model.scale = torch.rand(1).item()
    model.count = int(torch.randint(5, (1,)))
    model.flag = bool(torch.rand(()) > 0.5)
    model.real = float(torch.randn(3)[1])
    with torch.no_grad():
        model.weight.mul_(model.scale)
    return model


@idiom(expect_lazy=0.9, reads="a branch on a drawn value")
def a_branch_on_a_value() -> nn.Module:
    model = nn.Linear(32, 32)
    if torch.rand(1) > 0.5:
        nn.init.zeros_(model.weight)
    else:
        nn.init.ones_(model.weight)
    while torch.randn(()) < 0.8:
        model.bias.data.add_(1)
    return model


@idiom(expect_lazy=None, reads="a branch reads the very weight")
def a_weight_is_read_then_written_again() -> nn.Module:
    model = nn.Linear(16, 16)
    if (model.weight.abs() > 0.1).any():
        nn.init.normal_(model.weight)
    if model.weight.max() > 2 and not torch.isnan(model.weight).any():
        model.weight.data.clamp_(-2, 2)
    return model


@idiom(expect_lazy=0.0, reads="tolist and numpy hand out the values")
def values_leave_as_python_and_numpy_and_come_back() -> list[Any]:
    a = torch.randn(4, 3)
    rows = a.tolist()
    array = a.numpy().copy()
    rows[0][0] += 1
    return [a, torch.tensor(rows), torch.from_numpy(array * 2), numpy.asarray(a).sum().item()]


@idiom(expect_lazy=0.0, reads="numpy shares the memory")
def a_numpy_view_is_written_through() -> list[torch.Tensor]:
    a = torch.randn(6)
    array = a.numpy()
    array[2] = 9
    numpy.multiply(array, 2, out=array)
    a.add_(1)
    return [a]


@idiom(expect_lazy=None, reads="torch.tensor and from_numpy hold data that exists already")
def constants_from_lists_and_arrays() -> list[torch.Tensor]:
    a = torch.randn(2, 2)
    return [
        a,
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor(5),
        torch.as_tensor([1, 2, 3]),
        torch.asarray([1.5]),
        torch.from_numpy(numpy.arange(6.0).reshape(2, 3)),
        torch.frombuffer(bytearray(16), dtype=torch.int32),
        torch.tensor([True, False]),
        torch.scalar_tensor(2.5),
        torch.tensor(numpy.float32(3)) + a,
        torch.tensor([0.5, 0.25]).mul(2).add(a[0]),
    ]


@idiom(expect_lazy=None, reads="numpy's values exist already")
def initialization_from_numpy_and_python_generators() -> nn.Module:
    model = nn.Linear(8, 6)
    model.weight.data.copy_(torch.from_numpy(numpy.random.randn(6, 8)))
    model.bias.data = torch.tensor([random.gauss(0, 1) for _ in range(6)])
    model.table = torch.from_numpy(numpy.random.default_rng(3).normal(size=(3, 3))).float()
    model.order = torch.tensor(random.sample(range(9), 9))
    return model


@idiom(expect_lazy=None, reads="a list of lazy scalars is read to make a tensor")
def torch_tensor_of_a_list_of_scalars() -> list[torch.Tensor]:
    values = torch.rand(3)
    return [torch.tensor([values[0], values[1], 2.0]), torch.stack(list(values)), values]


@idiom(expect_lazy=None, reads="tolist of a permutation")
def a_permutation_orders_python_objects() -> nn.Module:
    order = torch.randperm(5).tolist()
    return nn.ModuleList([nn.Linear(size + 1, 2) for size in order])


@idiom(expect_lazy=None, reads="nonzero, unique and boolean masks have data-dependent shapes")
def shapes_that_depend_on_values() -> list[torch.Tensor]:
    a = torch.randint(0, 4, (20,))
    b = torch.randn(20)
    return [
        a,
        a.nonzero(),
        a.unique(),
        *a.unique(return_counts=True),
        b[b > 0],
        torch.masked_select(b, a > 1),
        torch.where(a == 2)[0],
        torch.bincount(a),
        torch.repeat_interleave(b, a),
        torch.combinations(a[:4]),
    ]


@idiom(expect_lazy=None, reads="the comparison is made at once")
def assertions_on_values() -> nn.Module:
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, 0.5)
    assert torch.equal(model.weight, torch.full((4, 4), 0.5))
    assert torch.allclose(model.weight.sum(1), torch.full((4,), 2.0))
    assert model.weight[0, 0] == 0.5
    assert torch.isfinite(model.bias).all()
    return model


@idiom(expect_lazy=None, reads="in looks for a value")
def containment_iteration_and_indexing_by_a_tensor() -> dict[str, Any]:
    a = torch.arange(6)
    return {
        "a": a,
        "found": 3 in a,
        "items": [int(x) for x in a],
        "picked": ["u", "v", "w"][torch.argmax(torch.rand(3))],
        "range": list(range(a[2])),
        "formatted": f"{a[1]:d} {torch.rand(()):.3f}",
        "length": len(a),
        "index": a[a[3]],
    }


@idiom(expect_lazy=None, reads="a rotation matrix is searched by value")
def a_loop_until_convergence() -> list[torch.Tensor]:
    matrix = torch.randn(6, 6)
    matrix = matrix @ matrix.t() + torch.eye(6)
    vector = torch.ones(6)
    for _ in range(50):
        before = vector
        vector = matrix @ vector
        vector = vector / vector.norm()
        if (vector - before).abs().max().item() < 1e-3:
            break
    return [matrix, vector]


@idiom(expect_lazy=None, reads="what a checkpoint holds exists already")
def saved_and_loaded_inside_the_constructor() -> nn.Module:
    model = nn.Linear(4, 4)
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(4, 4), "bias": torch.arange(4.0)}, stream)
    stream.seek(0)
    model.load_state_dict(torch.load(stream, weights_only=False))
    return model


@idiom
def python_mathematics_only() -> nn.Module:
    model = nn.Linear(16, 16)
    bound = math.sqrt(6 / sum(model.weight.shape))
    nn.init.uniform_(model.weight, -bound, bound)
    model.size = model.weight.numel() * model.weight.element_size() + model.weight.dim()
    model.same = model.weight.is_contiguous() and model.weight.is_floating_point()
    return model


@idiom.parametrize()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_eager(case: Idiom) -> None:
    case.check()


@pytest.mark.core
def test_a_read_materializes_only_what_it_needs() -> None:
    """A value read while recording leaves the unrelated tensors lazy."""

    def build() -> list[torch.Tensor]:
        before, read, after = torch.randn(300), torch.randn(4), torch.randn(300)
        assert read.sum().item() != 0
        return [before, read, after]

    counts = compare(build, expect_lazy=2400 / 2416)
    assert counts.reads


def test_a_read_does_not_change_what_comes_later() -> None:
    def build() -> list[Any]:
        tensors: list[Any] = [torch.randn(64) for _ in range(6)]
        for i, tensor in enumerate(tensors[:-1]):
            tensor.mul_(2)
            tensors[i + 1].add_(tensor)
            if i % 2:
                tensors.append(tensor[3].item())
            tensor.uniform_()
        return tensors

    compare(build, expect_lazy=None)  # the items read two of the six


def test_reads_are_counted_by_operator() -> None:
    with dormant.lazy_init():
        torch.randn(10).sum().item()
    assert dormant._C.value_reads() == {"aten::_local_scalar_dense": 4}
