"""Random operators leave the generator where eager does, and replay from where it stood."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dormant
from compare import assert_same_bits

pytestmark = pytest.mark.core

Fill = Callable[[torch.Tensor, torch.Generator | None], torch.Tensor]

FILLS: dict[str, Fill] = {
    "normal_": lambda t, g: t.normal_(1.0, 2.0, generator=g),
    "uniform_": lambda t, g: t.uniform_(-1.0, 3.0, generator=g),
    "bernoulli_": lambda t, g: t.bernoulli_(0.3, generator=g),
    "bernoulli_ of a tensor": lambda t, g: t.bernoulli_(torch.full((), 0.3), generator=g),
    "exponential_": lambda t, g: t.exponential_(1.5, generator=g),
    "cauchy_": lambda t, g: t.cauchy_(0.5, 2.0, generator=g),
    "geometric_": lambda t, g: t.geometric_(0.3, generator=g),
    "log_normal_": lambda t, g: t.log_normal_(0.0, 0.5, generator=g),
    "random_": lambda t, g: t.random_(generator=g),
    "random_ below": lambda t, g: t.random_(100, generator=g),
    "random_ between": lambda t, g: t.random_(3, 2**30, generator=g),
    "torch.normal": lambda t, g: torch.normal(torch.zeros_like(t), 1.0, generator=g),
    "torch.bernoulli": lambda t, g: torch.bernoulli(torch.full_like(t, 0.3), generator=g),
    "torch.rand out": lambda t, g: torch.rand(t.shape, generator=g, out=t),
    "torch.randn out": lambda t, g: torch.randn(t.shape, generator=g, out=t),
    "torch.randint out": lambda t, g: torch.randint(0, 9, t.shape, generator=g, out=t),
}

FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [*FLOATING, torch.complex64, torch.int64, torch.int32, torch.uint8, torch.bool]

LAYOUTS: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "contiguous": lambda dtype: torch.zeros(7, 31, dtype=dtype),
    "block": lambda dtype: torch.zeros(16, dtype=dtype),
    "below a block": lambda dtype: torch.zeros(15, dtype=dtype),
    "one": lambda dtype: torch.zeros(1, dtype=dtype),
    "zero-dim": lambda dtype: torch.zeros((), dtype=dtype),
    "nothing": lambda dtype: torch.zeros(0, dtype=dtype),
    "transposed": lambda dtype: torch.zeros(7, 31, dtype=dtype).t(),
    "columns": lambda dtype: torch.zeros(7, 31, dtype=dtype)[:, :11],
    "channels last": lambda dtype: torch.zeros(2, 3, 4, 5, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    ),
}


def accepted(fill: Fill, dtype: torch.dtype) -> bool:
    try:
        fill(torch.zeros(3, dtype=dtype), torch.Generator())
    except (RuntimeError, NotImplementedError):
        return False
    return True


def build(
    fill: Fill, dtype: torch.dtype, generator: torch.Generator | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Fills a tensor of each layout in turn; returns them with the generator's state after each."""
    tensors, states = {}, {}
    followed = generator or torch.default_generator
    followed.manual_seed(11)
    for layout, make in LAYOUTS.items():
        tensors[layout] = fill(make(dtype), generator)
        states[layout] = followed.get_state()
    return tensors, states


@pytest.mark.filterwarnings("ignore:to - 1 is out of bounds")
@pytest.mark.parametrize("private", [False, True], ids=["default generator", "private generator"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FILLS)
def test_state_and_bits_are_those_of_eager(name: str, dtype: torch.dtype, private: bool) -> None:
    fill = FILLS[name]
    if not accepted(fill, dtype):
        with dormant.lazy_init(), pytest.raises((RuntimeError, NotImplementedError)):
            dormant.materialize(fill(torch.zeros(3, dtype=dtype), None))
        return
    eager, expected = build(fill, dtype, torch.Generator() if private else None)
    with dormant.lazy_init():
        lazy, states = build(fill, dtype, torch.Generator() if private else None)
    for layout, state in expected.items():
        assert torch.equal(states[layout], state), f"{layout}: the generator's state differs"
    for layout in reversed(LAYOUTS):
        assert dormant.is_lazy(lazy[layout]) or lazy[layout].numel() == 0, f"{layout} is not lazy"
        dormant.materialize(lazy[layout])
        assert_same_bits(eager[layout], lazy[layout], layout)


@pytest.mark.parametrize("name", ["normal_", "uniform_", "bernoulli_"])
def test_a_tensor_large_enough_to_jump_over_is_exact(name: str) -> None:
    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(16)
        return FILLS[name](torch.zeros(1300, 1001), None), torch.randn(100)

    eager = draw()
    with dormant.lazy_init():
        lazy = draw()
    dormant.materialize(lazy[1])
    dormant.materialize(lazy[0])
    for expected, got in zip(eager, lazy, strict=True):
        assert_same_bits(expected, got)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_randperm_is_lazy_and_exact(n: int) -> None:
    torch.manual_seed(12)
    eager, state = torch.randperm(n), torch.get_rng_state()
    torch.manual_seed(12)
    with dormant.lazy_init():
        lazy = torch.randperm(n)
    assert torch.equal(torch.get_rng_state(), state)
    dormant.materialize(lazy)
    assert_same_bits(eager, lazy)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("samples", [1, 4])
def test_multinomial_is_exact(samples: int, replacement: bool) -> None:
    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(13)
        weights = torch.ones(6, 9).cumsum(1)
        return torch.multinomial(weights, samples, replacement), torch.get_rng_state()

    eager, expected = draw()
    with dormant.lazy_init():
        lazy, state = draw()
    assert torch.equal(state, expected)
    dormant.materialize(lazy)
    assert_same_bits(eager, lazy)


def test_a_cached_normal_carries_over_from_tensor_to_tensor() -> None:
    """An odd count of serial normals leaves half a pair in the generator for the next."""

    def draw() -> list[torch.Tensor]:
        torch.manual_seed(14)
        return [torch.empty(n).normal_() for n in (3, 16, 1, 5, 7, 2, 33, 1)]

    eager = draw()
    with dormant.lazy_init():
        lazy = draw()
    for expected, got in reversed(list(zip(eager, lazy, strict=True))):
        dormant.materialize(got)
        assert_same_bits(expected, got)


def test_rejection_sampling_is_run_when_it_is_met() -> None:
    def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(15)
        rates = torch.rand(50) * 20
        return torch.poisson(rates), torch.randn(40), torch.get_rng_state()

    eager = draw()
    with dormant.lazy_init():
        lazy = draw()
    assert not dormant.is_lazy(lazy[0])
    assert dormant.is_lazy(lazy[1])
    dormant.materialize(lazy)
    for expected, got in zip(eager, lazy, strict=True):
        assert_same_bits(expected, got)
