"""Storages that die while their value is still needed, and histories that grow long."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits, build_both, compare
from dormant.reporting.memory import resident_bytes
from idiom import Idiom, Idioms
from living import live_storages

idiom = Idioms()
Tensors = list[torch.Tensor]


@idiom(marks=(pytest.mark.core,))
def sources_that_died_before_their_readers() -> Tensors:
    def derived(size: int) -> torch.Tensor:
        source = torch.randn(size)
        scaled = source * 3
        source.zero_()
        return scaled + torch.rand(size)

    return [derived(size) for size in (3, 20, 1000)]


@idiom(marks=(pytest.mark.core,))
def outputs_of_one_operator_with_pending_writes() -> Tensors:
    a = torch.randn(6, 8)
    values, indices = a.sort(1)
    values[0].zero_()
    indices.add_(1)
    mean, variance = torch.var_mean(a, 1)
    mean.mul_(2)
    q, r = torch.frexp(a)
    a.uniform_()
    q.sub_(1)
    top, where = a.topk(2)
    top.copy_(top.flip(0))
    return [values, indices, variance, mean, r, q, top, where, a]


@idiom
def one_output_of_several_dies() -> Tensors:
    a = torch.randn(6, 8)
    values, indices = a.max(1)
    del values
    b, c = torch.aminmax(a)
    del c
    a.zero_()
    return [a, indices, b]


@idiom
def readers_of_every_stage_of_one_storage() -> Tensors:
    a = torch.randn(50)
    stages = []
    for i in range(12):
        stages.append(a.clone() if i % 3 else a * 1.5)
        a.mul_(0.5) if i % 2 else a[i : i + 20].uniform_()
    return [*stages, a]


@idiom
def a_diamond_of_readers() -> Tensors:
    a = torch.randn(30)
    left, right = a + 1, a * 2
    a.normal_()
    joined = left + right
    left.zero_()
    right.add_(joined)
    return [joined, left, right, a]


@idiom
def two_storages_that_read_each_other_in_turn() -> Tensors:
    a, b = torch.randn(16), torch.randn(16)
    for _ in range(20):
        a.add_(b)
        b.sub_(a)
        a.clamp_(-3, 3)
        b.copy_(a.flip(0))
    return [a, b]


@idiom
def views_outlive_their_base_and_each_other() -> Tensors:
    def pieces() -> Tensors:
        base = torch.randn(10, 10)
        parts = list(base.chunk(5))
        for i, part in enumerate(parts):
            part.t()[i].fill_(i)
        base.mul_(2)
        return parts[1:4:2]

    return pieces()


@idiom
def a_storage_replaced_while_its_old_value_is_read() -> Tensors:
    a = torch.randn(10)
    copied = torch.empty(10).copy_(a)
    a.data = torch.rand(4)
    b = torch.randn(10)
    summed = b + copied
    b.set_(a)
    return [copied, summed, a, b]


@idiom
def a_value_overwritten_completely_many_times() -> Tensors:
    a = torch.empty(100)
    reader = None
    for i in range(200):
        a.normal_()
        if i == 150:
            reader = a + 1
    return [a, reader]


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()


@pytest.mark.core
@pytest.mark.parametrize("first", range(3))
def test_materializing_a_reader_first_leaves_the_rest_right(first: int) -> None:
    def build() -> Tensors:
        a = torch.randn(40)
        b = a + torch.rand(40)
        a.uniform_()
        c = torch.empty(40).copy_(a)
        a.mul_(b)
        return [a, b, c]

    eager, lazy = build_both(build)
    for i in (first, *range(3)):
        dormant.materialize(lazy[i])
        assert_same_bits(eager[i], lazy[i], f"tensor {i}")


def test_a_reader_alone_after_writes_that_follow_what_it_read() -> None:
    def build() -> torch.Tensor:
        a = torch.randn(40)
        b = a.clone()
        a.uniform_()
        a.add_(b)
        b.mul_(a)
        return b

    compare(build)


def test_storages_are_freed_with_their_tensors() -> None:
    before = live_storages()
    with dormant.lazy_init():
        tensors = [torch.randn(100) for _ in range(50)]
        chained = tensors[0]
        for tensor in tensors:
            chained = chained + tensor
    assert live_storages() > before
    reference = weakref.ref(chained)
    del tensors, chained, tensor
    gc.collect()
    assert reference() is None
    assert live_storages() == before


def test_materialized_storages_are_no_longer_counted() -> None:
    before = live_storages()
    with dormant.lazy_init():
        model = torch.nn.Linear(50, 50)
    dormant.materialize(model)
    assert dormant._C.live_storages() == before


@pytest.mark.core
def test_a_long_chain_of_writes_is_replayed_and_released() -> None:
    """A recursive release or replay of this many nodes overflows the stack."""
    writes = 100_000

    def build() -> Tensors:
        a = torch.zeros(4)
        for _ in range(writes):
            a.add_(0.5)
        return [a]

    with dormant.lazy_init():
        dropped, kept = build(), build()
    del dropped
    gc.collect(1)
    dormant.materialize(kept[0])
    assert kept[0].tolist() == [writes * 0.5] * 4


def test_a_long_chain_of_functional_results_is_replayed_and_released() -> None:
    length = 100_000

    def build() -> torch.Tensor:
        a = torch.randn(2)
        for i in range(length):
            a = a.clone() if i % 1000 else a + 1
        return a

    eager, lazy = build_both(lambda: [build(), build()])
    dropped, kept = lazy
    del dropped, lazy
    gc.collect(1)
    dormant.materialize(kept)
    assert_same_bits(eager[1], kept)


def test_a_long_chain_of_views_and_copies_between_two_storages() -> None:
    length = 20_000

    def build() -> Tensors:
        a, b = torch.ones(3), torch.zeros(3)
        for _ in range(length):
            b[1:].copy_(a[:2])
            a[1:].copy_(b[:2])
        return [a, b]

    eager, lazy = build_both(build)
    dormant.materialize(lazy[1])
    for left, right in zip(eager, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


def test_many_readers_of_one_overwritten_value() -> None:
    def build() -> Tensors:
        a = torch.randn(10)
        readers = [a + i for i in range(500)]
        a.zero_()
        return [a, *readers[::7]]

    compare(build)


def test_an_exception_holds_a_lazy_tensor_alive_and_valid() -> None:
    torch.manual_seed(0)
    expected = torch.randn(5)
    torch.manual_seed(0)
    held: dict[str, torch.Tensor] = {}
    try:
        with dormant.lazy_init():
            local = torch.randn(5)
            raise ValueError("stop")
    except ValueError as error:
        held = dict(error.__traceback__.tb_frame.f_locals)
    del local
    dormant.materialize(held["local"])
    assert_same_bits(expected, held["local"])


def test_cycles_of_modules_are_collected() -> None:
    before = live_storages()
    with dormant.lazy_init():
        model = torch.nn.Linear(4, 4)
        object.__setattr__(model, "me", model)
    del model
    assert live_storages() == before


def test_a_lazy_tensor_materialized_within_a_gc_callback() -> None:
    """A finalizer may run anywhere, also while another tensor is being recorded."""
    with dormant.lazy_init():
        kept = torch.randn(10)
        seen = []

        class Owner:
            def __del__(self) -> None:
                seen.append(kept.sum().item())

        owner = [Owner()]
        owner.append(owner)
        del owner
        for _ in range(50):
            torch.randn(5).add_(kept[:5])
        gc.collect()
        after = torch.zeros(3)
    assert len(seen) == 1
    assert seen[0] == kept.sum().item()
    assert dormant.is_lazy(after)


def test_two_hundred_models_built_and_dropped_leave_nothing() -> None:
    def build(i: int) -> None:
        with dormant.lazy_init():
            model = nn.ModuleList(
                [
                    nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
                    nn.TransformerEncoderLayer(64, 2, 64),
                    nn.BatchNorm1d(64),
                ]
            )
            nn.init.trunc_normal_(model[1].linear1.weight)
            (model[1].linear1.weight @ model[1].linear2.weight).sum()
            model.itself = [model]
        model.half()
        if i % 3 == 0:
            dormant.materialize(model)
        elif i % 3 == 1:
            model[1].linear1.weight.sum().item()

    def build_many() -> tuple[int, int, int]:
        for i in range(70):
            build(i)
        gc.collect()
        return live_storages(), len(gc.get_objects()), resident_bytes() or 0

    first, second, third = (build_many() for _ in range(3))
    assert second[0] == third[0] == first[0]
    assert third[1] - second[1] < 100
    # Seventy of these models have 7 MiB of weights.
    assert third[2] - second[2] < 2 << 20
