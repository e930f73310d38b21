"""Real tensors that a recording read may change, move or die afterwards, in any way."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import dormant
from compare import assert_same_bits

SMALL, LARGE = 12, 100_000

Use = Callable[[torch.Tensor], list[torch.Tensor]]


def copied(source: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty(source.shape, dtype=source.dtype).copy_(source)]


def added(source: torch.Tensor) -> list[torch.Tensor]:
    return [torch.ones(source.shape) + source, torch.randn(source.shape).mul_(source)]


def concatenated(source: torch.Tensor) -> list[torch.Tensor]:
    return [torch.cat([torch.zeros(3), source]), torch.stack([source, torch.zeros_like(source)])]


def through_a_view(source: torch.Tensor) -> list[torch.Tensor]:
    lazy = torch.zeros(source.numel())
    lazy[2:8] = source[1:7]
    lazy[:3].add_(source[::4][:3])
    return [lazy]


def in_a_condition(source: torch.Tensor) -> list[torch.Tensor]:
    return [torch.where(source > 0, torch.ones(source.shape), torch.full(source.shape, 2.0))]


def by_an_index(source: torch.Tensor) -> list[torch.Tensor]:
    index = (source.abs() * 100).long() % 7
    lazy = torch.arange(7.0)[index]
    index.zero_()
    return [lazy]


def as_parameters_of_draws(source: torch.Tensor) -> list[torch.Tensor]:
    return [
        torch.bernoulli(torch.zeros(source.shape).add_(source.abs().clamp(max=1))),
        torch.normal(torch.zeros(source.shape) + source, 1.0),
    ]


USES: dict[str, Use] = {
    use.__name__: use
    for use in (
        copied,
        added,
        concatenated,
        through_a_view,
        in_a_condition,
        by_an_index,
        as_parameters_of_draws,
    )
}


def in_place(source: torch.Tensor, _: Any) -> None:
    source.fill_(-5)


def through_numpy(_: torch.Tensor, array: numpy.ndarray) -> None:
    array[:] = -7  # no version counter sees this


def through_data(source: torch.Tensor, _: Any) -> None:
    source.data.zero_()


def resized(source: torch.Tensor, _: Any) -> None:
    source.resize_(1)


def storage_swapped(source: torch.Tensor, _: Any) -> None:
    source.data = torch.full((3,), -1.0)


def storage_set(source: torch.Tensor, _: Any) -> None:
    source.set_(torch.zeros(1))


def storage_emptied(source: torch.Tensor, _: Any) -> None:
    source.untyped_storage().resize_(0)


def restrided(source: torch.Tensor, _: Any) -> None:
    source.as_strided_((2,), (3,), 1).fill_(4)


def unchanged(source: torch.Tensor, _: Any) -> None:
    """The owner only drops it."""


CHANGES = (
    in_place,
    through_numpy,
    through_data,
    resized,
    storage_swapped,
    storage_set,
    storage_emptied,
    restrided,
    unchanged,
)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("use", USES)
def test_a_captured_tensor_may_change(use: str, change: Any, size: int) -> None:
    def source() -> tuple[torch.Tensor, numpy.ndarray | None]:
        values = torch.linspace(-1, 1, size)
        if change is storage_emptied:
            return values, None  # numpy's view would forbid the resize
        array = values.numpy()
        return (values if change is resized else torch.from_numpy(array)), array

    original, _ = source()
    torch.manual_seed(0)
    expected = USES[use](original)

    owner, array = source()
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = USES[use](owner)
    change(owner, array)
    del owner, array
    gc.collect(1)
    torch.full((size,), 9.0)  # takes up memory that was freed
    for left, right in zip(expected, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


@pytest.mark.core
def test_a_small_captured_tensor_leaves_its_reader_lazy() -> None:
    source = torch.arange(6.0)
    with dormant.lazy_init():
        lazy = torch.zeros(6).copy_(source)
    assert dormant.is_lazy(lazy)
    source.fill_(3)
    dormant.materialize(lazy)
    assert_same_bits(torch.arange(6.0), lazy)


@pytest.mark.core
def test_an_index_tensor_changed_in_place_while_recording() -> None:
    """A counter that is advanced between two uses has two values in the record."""

    def build(index: torch.Tensor) -> list[torch.Tensor]:
        table, picked = torch.randn(10), []
        for _ in range(4):
            picked.append(table[index])
            table[index] = 0.0
            index += 1
        return [table, *picked]

    torch.manual_seed(0)
    expected = build(torch.tensor([0, 3]))
    index = torch.tensor([0, 3])
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = build(index)
    assert index.tolist() == [4, 7]
    for left, right in zip(expected, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


def test_a_captured_parameter_of_a_real_model_trained_afterwards() -> None:
    teacher = torch.nn.Linear(8, 8)
    before = [p.detach().clone() for p in teacher.parameters()]
    with dormant.lazy_init():
        student = torch.nn.Linear(8, 8)
        student.load_state_dict(teacher.state_dict())
    teacher(torch.ones(8)).sum().backward()
    torch.optim.SGD(teacher.parameters(), lr=1.0).step()
    dormant.materialize(student)
    for left, right in zip(before, student.parameters(), strict=True):
        assert_same_bits(left, right)


def test_a_large_captured_tensor_is_copied_only_once() -> None:
    """Its reader becomes real instead of keeping a second copy for later."""
    source = torch.arange(float(LARGE))
    with dormant.lazy_init():
        lazy = torch.empty(LARGE)
        lazy.copy_(source)
    source.zero_()
    dormant.materialize(lazy)
    assert_same_bits(torch.arange(float(LARGE)), lazy)


def test_a_numpy_array_reused_as_a_buffer_for_every_layer() -> None:
    def build() -> list[torch.Tensor]:
        buffer = numpy.empty(20, dtype=numpy.float32)
        layers = []
        for i in range(5):
            buffer[:] = i + 1
            layers.append(torch.zeros(20).add_(torch.from_numpy(buffer)))
        return layers

    with dormant.lazy_init():
        lazy = build()
    for left, right in zip(build(), lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)
