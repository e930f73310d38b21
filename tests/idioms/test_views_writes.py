"""Writes through views, overlaps, reinterpretations, and values that were overwritten later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]


@idiom(marks=(pytest.mark.core,))
def an_in_place_write_on_a_view_is_seen_by_the_base() -> Tensors:
    base = torch.randn(6, 8)
    view = base[2:4, ::3]
    view.fill_(7)
    base.t()[1].normal_()
    base.view(-1)[5:11].mul_(-1)
    return [base, view]


@idiom
def slices_of_one_storage_as_buffers() -> nn.Module:
    model = nn.Module()
    table = torch.randn(4, 10)
    for row in range(4):
        model.register_buffer(f"row{row}", table[row])
    model.register_buffer("column", table[:, 3])
    table[1].zero_()
    model.row2.uniform_()
    model.column.add_(1)
    return model


@idiom(marks=(pytest.mark.core,))
def a_copied_value_outlives_the_overwriting_of_its_source() -> Tensors:
    a, b = torch.empty(20), torch.randn(20)
    a.copy_(b)
    b.uniform_()
    c = b.clone()
    b.zero_()
    return [a, b, c]


@idiom
def a_chain_of_copies_and_overwrites() -> Tensors:
    a, b, c = torch.randn(9), torch.randn(9), torch.randn(9)
    for _ in range(5):
        a.copy_(b)
        b.add_(c)
        c.mul_(a)
        a.uniform_()
    return [a, b, c]


@idiom
def three_way_rotation_through_temporaries() -> Tensors:
    a, b, c = torch.randn(3), torch.rand(3), torch.ones(3)
    kept = a.clone()
    a.copy_(b)
    b.copy_(c)
    c.copy_(kept)
    return [a, b, c]


@idiom
def a_tensor_copied_into_itself_shifted() -> Tensors:
    base = torch.randn(12)
    base[4:8].copy_(base[:4])
    base[0:2] = base[10:12].clone()
    return [base]


@idiom
def an_expanded_tensor_stays_expanded() -> Tensors:
    row = torch.randn(1, 5)
    wide = row.expand(4, 5)
    total = wide + torch.rand(4, 1)
    row.zero_()
    return [row, wide, total, wide.contiguous()]


@idiom
def an_overlapping_as_strided_view() -> Tensors:
    base = torch.randn(10)
    windows = base.as_strided((3, 5), (2, 1), 1)
    sums = windows.sum(1)
    base[3] = 100.0
    return [base, windows, sums, base.unfold(0, 4, 3)]


@idiom
def as_strided_writes_reach_beyond_the_original_view() -> Tensors:
    base = torch.zeros(12)
    view = base[:3]
    view.as_strided((3,), (4,), 0).copy_(torch.randn(3))
    view.as_strided_((2, 2), (6, 1))
    return [base, view]


@idiom
def set_makes_a_tensor_share_another_storage() -> Tensors:
    a, b = torch.randn(10), torch.rand(3)
    b.set_(a)
    b.add_(1)
    c = torch.empty(0).set_(a.untyped_storage(), 2, (2, 3), (3, 1))
    d = torch.empty(0)
    d.set_(a.storage(), 1, (4,), (2,))
    return [a, b, c, d]


@idiom
def set_to_nothing_empties_a_tensor() -> Tensors:
    a = torch.randn(4)
    b = a[1:3]
    a.set_()
    return [a, b]


@idiom
def resize_to_fewer_elements_keeps_the_storage() -> Tensors:
    a = torch.randn(4, 5)
    b = a.view(-1)
    a.resize_(2, 3)
    a.mul_(2)
    return [a, b]


@idiom(expect_lazy=None, reads="resize_ that grows a storage moves its bytes")
def resize_to_more_elements_keeps_the_values() -> Tensors:
    a = torch.randn(4)
    a.resize_(8)
    a[4:].fill_(3)
    b = torch.empty(0)
    b.resize_(5).normal_()
    c = torch.empty(2).resize_as_(a).copy_(a)
    return [a, b, c]


@idiom(expect_lazy=None, reads="a storage that grows moves its bytes")
def untyped_storage_resize() -> Tensors:
    a = torch.randn(4)
    a.untyped_storage().resize_(0)
    a.untyped_storage().resize_(16)
    a.copy_(torch.arange(4.0))
    return [a]


@idiom(marks=(pytest.mark.core,))
def out_variants_of_factories() -> Tensors:
    return [
        torch.arange(7.0, out=torch.empty(7)),
        torch.linspace(0, 1, 5, out=torch.empty(5)),
        torch.logspace(0, 1, 5, out=torch.empty(5)),
        torch.eye(3, 4, out=torch.empty(3, 4)),
        torch.zeros(3, out=torch.empty(3)),
        torch.ones(3, out=torch.empty(3, dtype=torch.float64)),
        torch.full((3,), 2.5, out=torch.empty(3)),
        torch.rand(4, out=torch.empty(4)),
    ]


@idiom
def out_variants_of_arithmetic() -> Tensors:
    a, b = torch.randn(3, 4), torch.rand(3, 4)
    return [
        torch.add(a, b, out=torch.empty(3, 4)),
        torch.sin(a, out=torch.empty(3, 4)),
        torch.mm(a, b.t(), out=torch.empty(3, 3)),
        torch.cat([a, b], out=torch.empty(6, 4)),
        torch.stack([a, b], out=torch.empty(2, 3, 4)),
        torch.mul(a, b, out=a),
        torch.cumsum(a, 0, out=torch.empty(3, 4)),
    ]


@idiom
def out_is_a_slice_of_a_table() -> Tensors:
    position = torch.arange(0.0, 10).unsqueeze(1)
    angle = position * torch.exp(torch.arange(0, 8, 2) * (-0.1))
    table = torch.zeros(10, 8)
    torch.sin(angle, out=table[:, 0::2])
    torch.cos(angle, out=table[:, 1::2])
    return [table]


@idiom(expect_lazy=None, reads="an out= that has to grow moves a storage")
def out_of_the_wrong_size_is_resized() -> Tensors:
    a = torch.randn(5)
    return [torch.sin(a, out=torch.empty(0)), torch.polar(a.abs(), a, out=torch.empty(0).cfloat())]


@idiom
def complex_and_real_views_of_one_storage() -> Tensors:
    z = torch.randn(5, dtype=torch.complex64)
    pairs = torch.view_as_real(z)
    pairs[..., 1].mul_(2)
    back = torch.view_as_complex(torch.randn(4, 2))
    back.real.fill_(1)
    return [z, pairs, back, z.imag, z.conj(), z.mH if z.dim() > 1 else z]


@idiom
def a_conjugate_view_is_written_through() -> Tensors:
    z = torch.randn(3, 4, dtype=torch.complex64)
    w = z.conj()
    w[0].copy_(torch.randn(4, dtype=torch.complex64))
    return [z, w, w.imag]


@idiom(expect_lazy=0.0, reads="resolve_conj looks at a bit of the tensor and computes")
def a_conjugate_view_is_resolved() -> Tensors:
    z = torch.randn(3, 4, dtype=torch.complex64)
    return [z, z.conj().resolve_conj(), z.conj().imag.resolve_neg()]


@idiom
def bits_are_reinterpreted_as_another_dtype() -> Tensors:
    a = torch.randn(4, 6)
    raw = a.view(torch.int32)
    raw.bitwise_and_(0x7FFFFFFF)
    halves = a.view(torch.float16)
    signs = a.view(torch.uint8)[:, 3::4]
    return [a, raw, halves, signs, halves.view(torch.int16)]


@idiom
def views_of_every_kind() -> Tensors:
    a = torch.randn(4, 6, 2)
    views = [
        a.permute(2, 0, 1),
        a.transpose(0, 1),
        a.select(1, 2),
        a.narrow(0, 1, 2),
        a.diagonal(0, 0, 2),
        a.movedim(0, -1),
        a.unflatten(1, (2, 3)),
        a.flatten(1),
        a.squeeze(),
        a.unsqueeze(1),
        a.swapaxes(0, 2),
        a.mT,
        a[..., None, 1],
        a.view_as(torch.empty(8, 6)),
        *a.split(2),
        *a.chunk(3, 1),
        *a.unbind(2),
        *a.tensor_split(2, 1),
        *torch.hsplit(a, 2),
    ]
    a.diagonal().zero_()
    return [a, *views]


@idiom
def the_base_is_freed_and_only_a_view_is_left() -> Tensors:
    return [torch.randn(8, 8)[2:5, 1], torch.eye(6).t()[1:], torch.rand(4, 4).diagonal()]


@idiom
def every_in_place_arithmetic_on_part_of_a_tensor() -> Tensors:
    a, b = torch.rand(10, 6) + 0.5, torch.rand(6) + 0.5
    a[0].add_(b, alpha=2)
    a[1].sub_(b)
    a[2].mul_(b)
    a[3].div_(b)
    a[4].pow_(2)
    a[5].clamp_(0.6, 0.9)
    a[6].sqrt_()
    a[7].lerp_(b, 0.3)
    a[8].addcmul_(b, b, value=0.5)
    a[9].erfinv_().neg_().exp_()
    a[:, 2].masked_fill_(a[:, 2] > 1, 0.0)
    return [a, b]


@idiom
def subscript_assignment() -> Tensors:
    a = torch.randn(6, 5)
    a[0] = 1.5
    a[1:3, ::2] = torch.rand(2, 3)
    a[..., -1] = torch.arange(6)
    a[3, 4] = a[0, 0]
    a[None, 5] *= 2
    a[:] += a[:, :1]
    return [a]


@idiom
def roll_flip_tile_and_repeat() -> Tensors:
    a = torch.randn(3, 4)
    return [
        a.roll(1, 0),
        a.flip(1),
        a.tile(2, 2),
        a.repeat(2, 1),
        a.roll((1, 2), (0, 1)),
        a.rot90(),
    ]


@idiom(expect_lazy=0.9, reads="torch.tensor holds a number that exists already")
def zero_and_empty_sizes() -> list[Any]:
    a = torch.randn(0, 3)
    return [
        a,
        a.sum(),
        a.t(),
        torch.cat([a, torch.randn(2, 3)]),
        torch.tensor(3.5),
        torch.randn(()),
        torch.empty(3, 0, 2).normal_(),
        torch.zeros(()).add_(torch.rand(())),
        torch.randn(5)[2],
        torch.arange(0),
    ]


@idiom(expect_lazy=0.0, reads="repeat_interleave turns its count into a tensor of counts")
def rows_repeated_one_by_one() -> Tensors:
    a = torch.randn(3, 4)
    return [a, a.repeat_interleave(2), a.repeat_interleave(3, dim=1)]


@idiom
def channels_last_and_other_memory_formats() -> Tensors:
    a = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    a[:, 1].normal_()
    b = torch.empty(2, 3, 4, 5, 6, memory_format=torch.channels_last_3d).uniform_()
    c = torch.empty_strided((3, 4), (1, 3)).normal_()
    return [a, a.contiguous(), b, c, torch.randn_like(a), a.clone(), torch.zeros_like(c.t())]


@idiom(padding={"[0]": "the gaps of an empty_strided are never written"})
def empty_strided_with_gaps() -> Tensors:
    return [torch.empty_strided((3, 4), (8, 2)).normal_()]


@idiom
def a_view_of_a_view_of_a_parameter_under_no_grad() -> nn.Module:
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight[2:6][:, 1:3].zero_()
        model.weight.diagonal().fill_(1)
        model.bias.view(2, 4)[1].normal_()
    return model


@idiom
def qkv_packed_from_three_initialized_parts() -> nn.Module:
    model = nn.Linear(8, 24)
    with torch.no_grad():
        for part in model.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        parts = torch.split(model.bias, 8)
        parts[1].zero_()
        model.weight.view(3, 8, 8)[2].copy_(model.weight[:8].t())
    return model


@idiom
def a_padding_row_is_zeroed_and_rows_are_averaged() -> nn.Module:
    model = nn.Embedding(10, 4, padding_idx=3)
    with torch.no_grad():
        model.weight[7:] = model.weight[:7].mean(0, keepdim=True)
        model.weight[3].fill_(0)
    return model


@idiom
def a_table_written_row_by_row_in_a_loop() -> Tensors:
    table = torch.empty(12, 12)
    for row in range(12):
        for column in range(12):
            table[row, column] = row * 0.5 - column
    return [table]


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()
