"""Lazy tensors after the context: movement stays lazy, mathematics and reads are right."""

from __future__ import annotations

import copy
import io
import operator
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits, build_both, storage_key
from reachable import holdings


class Net(nn.Module):
    """Parameters, buffers, a tie and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(16).float().cos(), persistent=False)
        self.plain = torch.randn(5)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(index)) + self.table)


def assert_same(eager: Any, lazy: Any) -> None:
    """Materializes `lazy` and compares all it holds."""
    dormant.materialize(list(holdings(lazy).tensors.values()))
    left, right = holdings(eager).tensors, holdings(lazy).tensors
    assert list(left) == list(right)
    assert left
    for name, tensor in left.items():
        assert_same_bits(tensor, right[name], name)


def all_lazy(root: Any) -> bool:
    tensors = holdings(root).tensors.values()
    # BatchNorm's counter is made by torch.tensor, which holds a number that exists already
    weights = [t for t in tensors if t.numel() > 1]
    return bool(weights) and all(dormant.is_lazy(t) for t in weights)


MOVEMENTS: dict[str, Callable[[nn.Module], Any]] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "to_dtype": lambda m: m.to(torch.bfloat16),
    "to_same": lambda m: m.to("cpu", torch.float32),
    "half_then_float": lambda m: m.half().float(),
    "type": lambda m: m.type(torch.float64),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "eval": lambda m: m.eval(),
    "zero_grad": lambda m: [m.zero_grad(), m],
    "deepcopy": copy.deepcopy,
    "deepcopy_beside": lambda m: [m, copy.deepcopy(m)],
    "state_dict": lambda m: [m, m.state_dict()],
    "swa": lambda m: torch.optim.swa_utils.AveragedModel(m),
    "apply_init": lambda m: m.apply(
        lambda x: nn.init.zeros_(x.weight) if isinstance(x, nn.Linear) else None
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", MOVEMENTS)
def test_moving_a_model_keeps_it_lazy(name: str) -> None:
    eager, lazy = build_both(Net)
    eager, lazy = MOVEMENTS[name](eager), MOVEMENTS[name](lazy)
    assert all_lazy(lazy)
    assert_same(eager, lazy)


TENSOR_MOVEMENTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "clone": lambda t: t.clone(),
    "contiguous": lambda t: t.t().contiguous(),
    "to": lambda t: t.to(torch.float16),
    "type": lambda t: t.type(torch.float64),
    "chunk": lambda t: list(t.chunk(3)),
    "split_clone": lambda t: [part.clone() for part in t.split(4, 1)],
    "narrow": lambda t: t.narrow(1, 2, 3),
    "narrow_copy": lambda t: torch.narrow_copy(t, 1, 2, 3),
    "index": lambda t: t[2:5, ::2],
    "cat": lambda t: torch.cat([t, t[:2]]),
    "stack": lambda t: torch.stack([t, t]),
    "new_zeros": lambda t: t.new_zeros(4, 2),
    "new_full": lambda t: t.new_full((3,), 2),
    "new_empty_filled": lambda t: t.new_empty(5).fill_(1),
    "zeros_like": torch.zeros_like,
    "ones_like": lambda t: torch.ones_like(t, dtype=torch.float64),
    "full_like": lambda t: torch.full_like(t, 3),
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "copy_": lambda t: torch.empty_like(t).copy_(t),
    "fill_": lambda t: t.fill_(4),
    "zero_": lambda t: t.zero_(),
    "normal_": lambda t: t.normal_(),
    "uniform_": lambda t: t.uniform_(-1, 1),
    "expand": lambda t: t[:1].expand(4, -1),
    "detach": lambda t: t.detach(),
    "parameter": lambda t: nn.Parameter(t),
    "view": lambda t: t.view(-1),
    "unbind": lambda t: list(t.unbind()),
    "copy_into_view": lambda t: t[1:3].copy_(torch.ones(2, 8)),
    "setitem": lambda t: operator.setitem(t, slice(0, 2), 7.0) or t,
    "pickle_free_copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.core
@pytest.mark.parametrize("name", TENSOR_MOVEMENTS)
def test_moving_a_tensor_keeps_it_lazy(name: str) -> None:
    eager, lazy = build_both(lambda: torch.randn(9, 8))
    torch.manual_seed(1)
    eager = [eager, TENSOR_MOVEMENTS[name](eager)]
    torch.manual_seed(1)
    lazy = [lazy, TENSOR_MOVEMENTS[name](lazy)]
    assert all_lazy(lazy)
    assert_same(eager, lazy)


MATHEMATICS: dict[str, Callable[[torch.Tensor], Any]] = {
    "add": lambda t: t + 1,
    "radd": lambda t: 1 - t,
    "with_real": lambda t: t * torch.arange(8.0),
    "matmul": lambda t: t @ t.t(),
    "sum": lambda t: t.sum(),
    "item": lambda t: t[1, 2].item(),
    "tolist": lambda t: t.tolist(),
    "float": lambda t: float(t[0, 0]),
    "bool": lambda t: bool(t[0, 0] > 0),
    "numpy": lambda t: t.numpy().copy(),
    "asarray": lambda t: numpy.asarray(t).copy(),
    "array_of_list": lambda t: numpy.array([t[0].numpy(), t[1].numpy()]),
    "numpy_ufunc": lambda t: numpy.sin(t),
    "dlpack": lambda t: torch.from_dlpack(t).clone(),
    "numpy_dlpack": lambda t: numpy.from_dlpack(t).copy(),
    "utils_dlpack": lambda t: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t)),
    "repr": repr,
    "str_of_view": lambda t: str(t[0]),
    "format": lambda t: f"{t[0, 0]:.4f}",
    "equal": lambda t: torch.equal(t, t),
    "allclose": lambda t: torch.allclose(t, t.clone()),
    "max": lambda t: [*t.max(0)],
    "nonzero": lambda t: t.gt(0).nonzero(),
    "mask": lambda t: t[t > 0],
    "iterate": lambda t: [row.sum().item() for row in t],
    "contains": lambda t: 99.0 in t,
    "in_place_add": lambda t: t.add_(1),
    "data_ptr": lambda t: t.data_ptr() != 0,
    "data_ptr_of_view": lambda t: t[2:].data_ptr() - t.data_ptr(),
    "hash_by_identity": lambda t: len({t, t}),
    "argsort": lambda t: t.argsort(),
    "einsum": lambda t: torch.einsum("ij->j", t),
    "out_real": lambda t: torch.sin(t, out=torch.empty(9, 8)),
    "apply_": lambda t: t.apply_(lambda x: x * 2),
    "map_": lambda t: t.map_(torch.ones(9, 8), lambda x, y: x + y),
    "type_string": lambda t: t.type(),
    "storage_list": lambda t: t.untyped_storage().tolist(),
    "storage_bytes": lambda t: bytes(t.untyped_storage()),
    "typed_storage": lambda t: t.storage().tolist(),
    "storage_item": lambda t: t.untyped_storage()[5],
    "storage_pointer": lambda t: t.untyped_storage().data_ptr() != 0,
    "storage_clone": lambda t: t.untyped_storage().clone().tolist(),
    "storage_copy": lambda t: torch.UntypedStorage(288).copy_(t.untyped_storage()).tolist(),
    "share_memory": lambda t: t.clone().share_memory_(),
    "is_shared": lambda t: t.is_shared(),
    "is_pinned": lambda t: t.is_pinned(),
    "new_tensor": lambda t: t.new_tensor([1.0, 2.0]),
    "new": lambda t: t.new(3).fill_(1),
    "new_of_list": lambda t: t.new([1.0, 2.0]),
    "new_like": lambda t: t.new(t),
    "as_tensor": lambda t: torch.as_tensor(t) + 0,
    "tensor_of_tensor": lambda t: torch.tensor(t[0, 0].item()),
    "tensor_of_rows": lambda t: torch.tensor([t[0, 0], t[1, 1]]),
    "cumsum": lambda t: t.cumsum(0),
    "memoryview": lambda t: memoryview(t.numpy()).tobytes(),
    "reduce_over_numpy": lambda t: numpy.mean(t.numpy()),
    "sparse": lambda t: t.relu().to_sparse().to_dense(),
    "interpolate": lambda t: torch.nn.functional.interpolate(t[None, None], size=(3, 3)),
    "gradient": lambda t: torch.func.grad(lambda x: x.square().sum())(t),
}


@pytest.mark.parametrize("name", MATHEMATICS)
@pytest.mark.filterwarnings("ignore")
def test_a_read_gives_the_eager_values(name: str) -> None:
    eager, lazy = build_both(lambda: torch.randn(9, 8))
    expected, got = MATHEMATICS[name](eager), MATHEMATICS[name](lazy)
    if isinstance(expected, numpy.ndarray):
        expected, got = torch.from_numpy(expected), torch.from_numpy(got)
    if isinstance(expected, torch.Tensor):
        # new of a tensor is an alias of it: nothing is read
        assert name == "new_like" or not dormant.is_lazy(got)
        assert_same_bits(expected, got)
    elif isinstance(expected, (list, tuple)) and isinstance(expected[0], torch.Tensor):
        for left, right in zip(expected, got, strict=True):
            assert_same_bits(left, right)
    else:
        assert expected == got
    assert_same(eager, lazy)


@pytest.mark.core
def test_a_forward_pass_of_a_lazy_model() -> None:
    eager, lazy = build_both(Net)
    index = torch.arange(12)
    assert_same_bits(eager(index), lazy(index))
    assert_same(eager, lazy)


def test_a_training_step_of_a_lazy_model() -> None:
    eager, lazy = build_both(Net)
    for model in (eager, lazy):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.arange(12)).square().mean().backward()
            optimizer.step()
    assert_same(eager, lazy)


@pytest.mark.core
def test_a_state_dict_loaded_into_a_lazy_model_initializes_nothing() -> None:
    torch.manual_seed(1)
    source = Net().state_dict()
    _, lazy = build_both(Net)
    operators = dormant._C.operators(lazy.embed.weight)
    assert any("normal_" in name for name in operators)
    lazy.load_state_dict(source)
    for name, tensor in lazy.state_dict().items():
        if dormant.is_lazy(tensor):
            assert not any("normal_" in op for op in dormant._C.operators(tensor)), name
        assert_same_bits(source[name], tensor, name)


def test_a_state_dict_of_a_lazy_model_loaded_into_a_real_one() -> None:
    eager, lazy = build_both(Net)
    torch.manual_seed(5)
    target = Net()
    target.load_state_dict(lazy.state_dict())
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, target.state_dict()[name], name)


def test_a_state_dict_assigned_keeps_its_tensors_lazy() -> None:
    eager, lazy = build_both(Net)
    with torch.device("meta"):
        target = Net()
    target.load_state_dict(lazy.state_dict(), assign=True)
    assert dormant.is_lazy(target.embed.weight)
    dormant.materialize(target)
    assert_same_bits(eager.embed.weight, target.embed.weight)


def test_torch_save_of_a_clone_that_was_materialized() -> None:
    eager, lazy = build_both(Net)
    stream = io.BytesIO()
    dormant.materialize(lazy)
    torch.save(lazy.state_dict(), stream)
    stream.seek(0)
    for name, tensor in torch.load(stream, weights_only=True).items():
        assert_same_bits(eager.state_dict()[name], tensor, name)


def test_a_shard_cut_outside_is_lazy_and_right_after_its_source_died() -> None:
    eager, lazy = build_both(lambda: torch.randn(64, 32))
    rows, columns = lazy.chunk(4)[1].clone(), lazy[:, 8:16].contiguous()
    del lazy
    assert all_lazy([rows, columns])
    assert_same([eager.chunk(4)[1].clone(), eager[:, 8:16].contiguous()], [columns, rows][::-1])


def test_writes_outside_reach_a_view_taken_inside() -> None:
    def build() -> list[torch.Tensor]:
        base = torch.zeros(10)
        return [base, base[2:6]]

    eager, lazy = build_both(build)
    for base, view in (eager, lazy):
        torch.manual_seed(3)
        view.normal_()
        base[0].fill_(5)
    assert all_lazy(lazy)
    assert_same(eager, lazy)


def test_a_real_tensor_written_from_a_lazy_one() -> None:
    eager, lazy = build_both(lambda: torch.randn(10))
    target = torch.zeros(10)
    target.copy_(lazy)
    assert_same_bits(eager, target)
    target[2:4] = lazy[5:7]
    assert_same_bits(eager[5:7], target[2:4])


def test_no_key_is_left_after_a_forward_pass_and_materialize() -> None:
    _, lazy = build_both(Net)
    lazy(torch.arange(4))
    dormant.materialize(lazy)
    for name, tensor in holdings(lazy).tensors.items():
        assert not dormant._C.carries_key(tensor), name
    assert not dormant._C.carries_key(lazy(torch.arange(4)))


def test_storages_shared_by_a_moved_model_stay_shared() -> None:
    _, lazy = build_both(Net)
    lazy.half()
    assert lazy.head.weight is lazy.embed.weight
    copied = copy.deepcopy(lazy)
    assert copied.head.weight is copied.embed.weight
    assert storage_key(copied.embed.weight) != storage_key(lazy.embed.weight)
