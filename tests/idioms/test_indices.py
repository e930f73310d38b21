"""Indices that are tensors of numbers tell the shape of what they select; masks do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compare import compare

ROWS = torch.tensor([3, 0, -1, 2, 2])

BY_NUMBERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda x: x[ROWS],
    "columns": lambda x: x[:, ROWS],
    "int32": lambda x: x[ROWS.int()],
    "both": lambda x: x[ROWS, ROWS],
    "broadcast against each other": lambda x: x[ROWS[:, None], ROWS[:3]],
    "around a slice": lambda x: x[None, ROWS, 1:, None],
    "of a transposed tensor": lambda x: x.t()[ROWS],
    "of a tensor in three dimensions, first and last": lambda x: x.view(4, 3, 5)[ROWS, :, ROWS],
    "none at all": lambda x: x[ROWS[:0]],
    "a list": lambda x: x[[2, 1]],
    "in two dimensions": lambda x: x[ROWS.view(5, 1).expand(5, 2)],
    "computed inside": lambda x: x[torch.arange(4).flip(0)],
    "drawn inside": lambda x: x[torch.randperm(4)],
}

BY_MASKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bool": lambda x: x[x > 0],
    "rows": lambda x: x[x[:, 0] > 0],
    "uint8": lambda x: x[(x[:, 0] > 0).to(torch.uint8)],
    "a list": lambda x: x[[True, False, True, False]],
    "and numbers": lambda x: x[torch.tensor([True, False, True, False]), torch.tensor([1, 2])],
}


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_what_numbers_select_stays_lazy(name: str) -> None:
    compare(lambda: BY_NUMBERS[name](torch.randn(4, 15)), min_bytes=0)


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", BY_MASKS)
def test_what_a_mask_selects_is_right(name: str) -> None:
    compare(lambda: BY_MASKS[name](torch.randn(4, 15)), expect_lazy=None, min_bytes=0)


PLACES: dict[str, object] = {
    "an element": (1, 2),
    "a row by a tuple": (1,),
    "a column": (slice(None), 2),
    "after an ellipsis": (..., slice(1, None)),
    "numbers": (ROWS[:2], 1),
    "a mask": torch.tensor([True, False, True, False]),
    "everything": ...,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("place", PLACES)
def test_a_value_without_dimensions_is_assigned(place: str, dtype: torch.dtype) -> None:
    outside = torch.tensor(7, dtype=dtype)
    untouched = torch.zeros(4, 3, dtype=dtype)

    def build() -> list[torch.Tensor]:
        first, second = torch.randn(4, 3).to(dtype), torch.randn(4, 3).to(dtype)
        real = untouched.clone()
        value = torch.full((), 3, dtype=dtype)
        first[PLACES[place]] = value
        second[PLACES[place]] = outside
        real[PLACES[place]] = value
        return [first, second, real, value]

    compare(build, expect_lazy=None, min_bytes=0)


def test_a_value_without_dimensions_gets_its_gradient() -> None:
    def build() -> list[torch.Tensor]:
        weight, value = torch.zeros(4, 3), torch.nn.Parameter(torch.tensor(2.0))
        weight[1, 2] = value
        weight[:, 0] = value
        weight.sum().backward()
        assert value.grad is not None
        return [weight.detach(), value.detach(), value.grad.clone()]

    compare(build, expect_lazy=None, min_bytes=0)
