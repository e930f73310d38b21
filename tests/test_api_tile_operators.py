"""Elementwise operators that tiles may run: any part has the bits of eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dormant
from compare import assert_same_bits

ROWS, COLUMNS = 300, 517


def values(dtype: torch.dtype) -> torch.Tensor:
    """Numbers of both signs, zeros of both signs, infinities and NaN.

    Not NaN in bfloat16: ATen rounds it to one pattern in vectors and to another in the elements
    left over, so which of them eager gives depends on its number of threads.
    """
    numbers = torch.empty(ROWS, COLUMNS, dtype=dtype).uniform_(-4, 4)
    numbers[3] = 0.0
    numbers[4] = -0.0
    numbers[5] = float("inf")
    numbers[6].div_(0)
    if dtype != torch.bfloat16:
        numbers[7] = float("nan")
    numbers[:, 5] = 2.5
    return numbers


OPERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": torch.abs,
    "abs_": lambda x: x.abs_(),
    "floor_": lambda x: x.floor_(),
    "ceil_": lambda x: x.ceil_(),
    "round": torch.round,
    "round_": lambda x: x.round_(),
    "trunc": torch.trunc,
    "trunc_": lambda x: x.trunc_(),
    "sign": torch.sign,
    "sign_": lambda x: x.sign_(),
    "reciprocal": torch.reciprocal,
    "reciprocal_": lambda x: x.reciprocal_(),
    "sqrt": torch.sqrt,
    "neg": torch.neg,
    "erfinv_": lambda x: x.erfinv_(),
    "clamp": lambda x: x.clamp(-1, 2),
    "eq": lambda x: x == 2.5,
    "lt": lambda x: x < torch.zeros_like(x),
    "logical_not": torch.logical_not,
    "where": lambda x: torch.where(x > 0.5, x, torch.full_like(x, -1.0)),
    "masked_fill": lambda x: x.masked_fill(x > 1, 7.0),
    "masked_fill_": lambda x: x.masked_fill_(x.clone() > 1, 7.0),
    "relu": torch.relu,
    "relu_": lambda x: x.relu_(),
    "one minus": lambda x: 1 - x,
    "logical_and": lambda x: torch.logical_and(x, x.clone() > 1),
    "logical_or_": lambda x: x.logical_or_(x.clone() > 1),
    "logical_xor": lambda x: torch.logical_xor(x > 0, x > 1),
    "and of masks": lambda x: (x > 0) & (x < 1),
    "or of masks": lambda x: (x > 2) | (x < 1),
    "xor of masks": lambda x: (x > 0) ^ (x < 1),
    "not of a mask": lambda x: ~(x > 0),
    "masks in place": lambda x: (x > 0).bitwise_and_(x < 1).bitwise_or_(x > 2).bitwise_not_(),
    "mul_ of a row": lambda x: x.mul_(torch.empty(COLUMNS, dtype=x.dtype).uniform_(1, 2)),
    "add_ of a column": lambda x: x.add_(torch.empty(ROWS, 1, dtype=x.dtype).uniform_(1, 2)),
    "div by another": lambda x: x / torch.empty_like(x).uniform_(1, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_tiles_have_the_bits_of_eager(name: str, dtype: torch.dtype) -> None:
    def build() -> tuple[torch.Tensor, torch.Tensor]:
        whole = OPERATORS[name](values(dtype))
        return whole, whole[:, 100:133].clone()

    torch.manual_seed(5)
    eager = build()
    torch.manual_seed(5)
    with dormant.lazy_init():
        lazy = build()
    for got, expected, what in zip(lazy, eager, ("the whole", "some columns"), strict=True):
        report = dormant.materialize(got)
        assert report.count_way("tiles") == 1, what
        assert_same_bits(expected, got, f"{name}, {what}")
