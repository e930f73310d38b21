"""Dtypes and layouts: ambient defaults, complex, sparse, quantized and nested tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits, compare
from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]

REAL_AT_ONCE = "tensors of this layout have no storage of their own: they are real at once"


def draws() -> list[torch.Tensor]:
    return [
        torch.randn(20),
        torch.arange(0, 1, 0.25),
        torch.zeros(3) + 0.5,
        torch.linspace(0, 1, 7),
        torch.full((3,), 0.1),
        torch.ones(4, dtype=torch.int32) / 3,
        torch.scalar_tensor(0.3),
        torch.randn(3, dtype=torch.complex64).abs(),
        torch.arange(4) * 0.1,
        nn.Linear(5, 4).weight,
    ]


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_set_inside_the_build(dtype: torch.dtype) -> None:
    def build() -> Tensors:
        torch.set_default_dtype(dtype)
        return draws()

    # numbers handed to scalar_tensor are real at once
    compare(build, expect_lazy=0.9)


@pytest.mark.core
def test_the_default_dtype_changed_between_recording_and_materializing() -> None:
    torch.manual_seed(0)
    expected = draws()
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = draws()
    torch.set_default_dtype(torch.float64)
    for left, right in zip(expected, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


@idiom
def the_default_dtype_switched_back_and_forth() -> Tensors:
    first = torch.randn(4)
    torch.set_default_dtype(torch.bfloat16)
    second = torch.randn(40)
    torch.set_default_dtype(torch.float64)
    third = torch.arange(5) / 3
    torch.set_default_dtype(torch.float32)
    return [first, second, third, torch.randn(3)]


@idiom(marks=(pytest.mark.core,))
def casts_of_every_kind() -> Tensors:
    a = torch.randn(50) * 100
    return [
        a.half(),
        a.bfloat16(),
        a.double(),
        a.int(),
        a.to(torch.uint8),
        a.bool(),
        a.cfloat(),
        a.to(torch.float8_e4m3fn),
        a.to(torch.float8_e5m2),
        a.type(torch.float64),
        a.to(a.half()),
        a.half().float().mul_(3),
        a.type_as(torch.empty(0, dtype=torch.int16)),
        a.long().float(),
    ]


@idiom
def a_module_cast_while_it_is_built() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8))
    model[0].to(torch.bfloat16)
    model.append(nn.Linear(8, 4).half())
    model.append(nn.Linear(4, 4, dtype=torch.float64))
    return model.append(nn.Embedding(5, 4).double().float())


@idiom
def special_values_survive() -> Tensors:
    a = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4e38])
    b = torch.empty(8).copy_(torch.zeros(8)).log_().sqrt_()
    c = torch.full((4,), float("nan"))
    raw = torch.full((3,), 0x7FC01234, dtype=torch.int32).view(torch.float32)
    copied = torch.empty(3).copy_(raw)
    return [b, c, raw, copied, raw.clone(), torch.zeros(6).add_(a), -torch.zeros(3)]


@idiom
def complex_initialization() -> nn.Module:
    model = nn.Linear(6, 4, dtype=torch.complex64)
    model.scale = nn.Parameter(torch.randn(4, 6, dtype=torch.cfloat) * 0.02)
    model.phase = torch.polar(torch.ones(5), torch.linspace(0, 3, 5))
    model.real_weight = nn.Parameter(torch.view_as_real(model.scale.detach()).clone())
    model.angle = model.scale.detach().angle()
    return model


@idiom
def integers_and_bools() -> Tensors:
    a = torch.randint(0, 100, (5, 6), dtype=torch.int8)
    return [
        a,
        a.bitwise_and(7),
        a << 1,
        a // 3,
        a % 7,
        a.eq(3),
        ~a.bool(),
        a.sum(),
        torch.ones(3, dtype=torch.bool) & torch.zeros(3, dtype=torch.bool),
        a.float().mean(0),
        torch.arange(5, dtype=torch.uint8),
    ]


@idiom(expect_lazy=None, reads=REAL_AT_ONCE)
def sparse_tensors() -> Tensors:
    dense = torch.randn(5, 6).relu()
    indices = torch.tensor([[0, 1, 4], [2, 0, 5]])
    coo = torch.sparse_coo_tensor(indices, torch.randn(3), (5, 6))
    return [
        dense,
        dense.to_sparse(),
        dense.to_sparse_csr(),
        dense.to_sparse_csc(),
        coo,
        coo.coalesce(),
        coo.to_dense(),
        torch.sparse.mm(coo, torch.randn(6, 2)),
        torch.eye(4).to_sparse_bsr((2, 2)),
    ]


@idiom(expect_lazy=None, reads=REAL_AT_ONCE)
def a_sparse_buffer_and_a_sparse_parameter() -> nn.Module:
    model = nn.Linear(4, 4)
    model.register_buffer("adjacency", torch.eye(4).to_sparse())
    model.sparse = nn.Parameter(torch.randn(4, 4).to_sparse())
    return model


@idiom(expect_lazy=None, reads=REAL_AT_ONCE)
def quantized_tensors() -> Tensors:
    a = torch.randn(4, 6)
    per_tensor = torch.quantize_per_tensor(a, 0.1, 10, torch.quint8)
    per_channel = torch.quantize_per_channel(
        a, torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.int64), 0, torch.qint8
    )
    return [a, per_tensor, per_channel, per_tensor.dequantize(), per_tensor.int_repr()]


@idiom(expect_lazy=0.25, reads="fake_quantize has a mask as a second, hidden result")
def fake_quantization_and_int8_scales() -> Tensors:
    a = torch.randn(4, 6)
    scale = a.abs().amax(1, keepdim=True) / 127
    packed = torch.round(a / scale).clamp_(-128, 127).to(torch.int8)
    return [packed, scale, torch.fake_quantize_per_tensor_affine(a, 0.1, 0, 0, 255)]


@idiom(expect_lazy=None, reads=REAL_AT_ONCE)
def nested_tensors() -> Tensors:
    parts = [torch.randn(2, 4), torch.randn(3, 4)]
    return [*parts, torch.nested.nested_tensor(parts), torch.nested.as_nested_tensor(parts)]


@idiom(expect_lazy=None, reads=REAL_AT_ONCE)
def jagged_tensors() -> Tensors:
    parts = [torch.randn(2, 4), torch.randn(3, 4)]
    return [torch.nested.nested_tensor(parts, layout=torch.jagged).values(), *parts]


@idiom(expect_lazy=None, reads=REAL_AT_ONCE)
def mkldnn_tensors() -> Tensors:
    a = torch.randn(4, 5)
    return [a, a.to_mkldnn(), a.to_mkldnn().to_dense()]


@idiom.parametrize()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_eager(case: Idiom) -> None:
    case.check()


def test_the_context_sets_the_dtype_it_was_given() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    expected = nn.Linear(16, 16)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with dormant.lazy_init(dtype=torch.bfloat16):
        model = nn.Linear(16, 16)
    assert torch.get_default_dtype() is torch.float32
    dormant.materialize(model)
    assert_same_bits(expected.weight, model.weight)


def test_a_number_of_threads_changed_before_materializing_changes_no_reduction() -> None:
    def build() -> Tensors:
        a = torch.randn(300_000)
        return [a, a.sum(), a.norm(), a.cumsum(0), a.view(300, 1000).sum(0)]

    torch.set_num_threads(2)
    torch.manual_seed(0)
    expected = build()
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = build()
    torch.set_num_threads(1)
    for left, right in zip(expected, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)
    assert torch.get_num_threads() == 1
