"""`nn.init.trunc_normal_`: recorded with as many rounds of draws as the bounds need."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C
from dormant.recording.truncated_normal import one_round_suffices

pytestmark = pytest.mark.core

TRIES_OUT = pytest.mark.skipif(
    torch.__version__.startswith("2.11."),
    reason="torch 2.11 inverts the distribution function, and tries out nothing",
)

SHAPES: dict[str, Callable[[], torch.Tensor]] = {
    "block": lambda: torch.empty(40, 10),
    "tail": lambda: torch.empty(37),
    "serial": lambda: torch.empty(7),
    "not contiguous": lambda: torch.empty(30, 20).t(),
    "bfloat16": lambda: torch.empty(40, 10, dtype=torch.bfloat16),
    "float16": lambda: torch.empty(33, dtype=torch.float16),
    "float64": lambda: torch.empty(64, dtype=torch.float64),
    "nothing": lambda: torch.empty(0),
}
BOUNDS = {
    "far": (0.0, 0.02, -2.0, 2.0),
    "shifted": (1.0, 0.1, 0.0, 2.0),
    "infinite": (0.0, 1.0, -math.inf, math.inf),
    "near": (0.0, 1.0, -2.0, 2.0),
    "one-sided": (0.0, 1.0, -1.0, 50.0),
    "rejection": (0.0, 1.0, 2.0, 3.0),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_bits_and_generator_are_those_of_eager(shape: str, bounds: str) -> None:
    torch.manual_seed(4)
    eager = nn.init.trunc_normal_(SHAPES[shape](), *BOUNDS[bounds])
    state = torch.get_rng_state()
    torch.manual_seed(4)
    with dormant.lazy_init():
        lazy = nn.init.trunc_normal_(SHAPES[shape](), *BOUNDS[bounds])
    assert torch.equal(torch.get_rng_state(), state)
    assert lazy._version == eager._version
    assert dormant.is_lazy(lazy) or not lazy.numel()
    dormant.materialize(lazy)
    assert_same_bits(eager, lazy)


@TRIES_OUT
def test_only_normal_is_recorded_where_the_bounds_are_far() -> None:
    with dormant.lazy_init():
        tensor = torch.empty(100)
        assert nn.init.trunc_normal_(tensor, std=0.02) is tensor
        assert _C.value_reads() == {}
    assert [name for name in _C.operators(tensor) if "empty" not in name] == ["aten::normal_"]


@TRIES_OUT
def test_values_tried_out_for_near_bounds_take_no_memory_afterwards() -> None:
    with dormant.lazy_init():
        tensor = nn.init.trunc_normal_(torch.empty(4000))
        assert _C.value_reads() == {}
    rounds = [name for name in _C.operators(tensor) if name == "aten::normal_"]
    assert len(rounds) > 1
    assert dormant.is_lazy(tensor)


def test_an_error_while_values_are_tried_out_leaves_the_generator_and_the_tensor() -> None:
    with dormant.lazy_init():
        tensor = torch.zeros(1, 20)
        state = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            nn.init.trunc_normal_(tensor.expand(5, 20))
        assert torch.equal(torch.get_rng_state(), state)
    dormant.materialize(tensor)
    assert tensor.tolist() == [[0.0] * 20]


@TRIES_OUT
@pytest.mark.parametrize("size", [0, 3])
def test_what_eager_refuses_half_way_is_refused_there(size: int) -> None:
    """Complex numbers are drawn before they cannot be compared with the bounds."""

    def build() -> tuple[torch.Tensor, int]:
        tensor = torch.zeros(size, dtype=torch.complex64)
        with pytest.raises(NotImplementedError, match="lt_cpu"):
            nn.init.trunc_normal_(tensor)
        return tensor, tensor._version

    torch.manual_seed(4)
    expected, version = build()
    state = torch.get_rng_state()
    torch.manual_seed(4)
    with dormant.lazy_init():
        got, counted = build()
    assert counted == version
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(expected, got)


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_a_private_generator_is_used(std: float) -> None:
    def fill() -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator()
        generator.manual_seed(9)
        tensor = nn.init.trunc_normal_(torch.empty(50), std=std, generator=generator)
        return tensor, generator.get_state()

    eager, state = fill()
    with dormant.lazy_init():
        lazy, lazy_state = fill()
    assert dormant.is_lazy(lazy)
    assert torch.equal(state, lazy_state)
    dormant.materialize(lazy)
    assert_same_bits(eager, lazy)


def test_a_parameter_that_requires_grad_is_filled() -> None:
    with dormant.lazy_init():
        parameter = nn.Parameter(torch.empty(20))
        nn.init.trunc_normal_(parameter, std=0.02)
    assert dormant.is_lazy(parameter)
    assert parameter.is_leaf
    assert parameter.requires_grad


def test_the_farthest_block_draw_is_inside_the_limit_used() -> None:
    # The smallest uniform number, 2^-24, at an angle of zero: sqrt(48 log 2) = 5.768108...
    reach = math.sqrt(48 * math.log(2))
    tensor = torch.empty(16)
    assert one_round_suffices(tensor, 0.0, 1.0, -reach * 1.00001, reach * 1.00001)
    assert not one_round_suffices(tensor, 0.0, 1.0, -reach * 0.99999, reach * 0.99999)
    assert not one_round_suffices(tensor, 0.0, 1.0, -reach * 1.00001, reach * 0.99999)


def test_a_serial_or_float64_draw_reaches_farther() -> None:
    for tensor in (
        torch.empty(15),
        torch.empty(8, 8).t()[:, ::2],
        torch.empty(64, dtype=torch.float64),
    ):
        assert not one_round_suffices(tensor, 0.0, 1.0, -8.5, 8.5)
        assert one_round_suffices(tensor, 0.0, 1.0, -8.58, 8.58)


@pytest.mark.parametrize(
    ("std", "low", "high", "dtype"),
    [
        (0.0, -9.0, 9.0, torch.float32),
        (-1.0, -9.0, 9.0, torch.float32),
        (math.nan, -9.0, 9.0, torch.float32),
        (1.0, math.nan, 9.0, torch.float32),
        (1.0, -1e6, 1e6, torch.float16),
        (1.0, -9.0, 9.0, torch.int32),
    ],
)
def test_what_is_an_error_in_pytorch_is_left_to_it(
    std: float, low: float, high: float, dtype: torch.dtype
) -> None:
    assert not one_round_suffices(torch.empty(32, dtype=dtype), 0.0, std, low, high)
