"""Random operators draw what eager draws, whatever the dtype, layout, size and generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compare import compare

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Around the vector width of ATen's block normal (16), and beyond one mt19937 block (624).
SIZES = (0, 1, 2, 15, 16, 17, 31, 1000)

Fill = Callable[[torch.Tensor, Any], torch.Tensor]

FILLS: dict[str, tuple[Fill, tuple[torch.dtype, ...]]] = {
    "normal_": (lambda t, g: t.normal_(0.5, 2.0, generator=g), FLOATING + COMPLEX),
    "normal_standard": (lambda t, g: t.normal_(generator=g), FLOATING + COMPLEX),
    "normal_std_0": (lambda t, g: t.normal_(3.0, 0.0, generator=g), FLOATING),
    "uniform_": (lambda t, g: t.uniform_(generator=g), FLOATING),
    "uniform_bounds": (lambda t, g: t.uniform_(-0.3, 1.7, generator=g), FLOATING),
    "uniform_narrow": (lambda t, g: t.uniform_(1.0, 1.0 + 2.0**-7, generator=g), FLOATING),
    "bernoulli_half": (lambda t, g: t.bernoulli_(0.5, generator=g), (*FLOATING, *INTEGER)),
    "bernoulli_never": (lambda t, g: t.bernoulli_(0.0, generator=g), FLOATING),
    "bernoulli_always": (lambda t, g: t.bernoulli_(1.0, generator=g), FLOATING),
    "bernoulli_bool": (lambda t, g: t.bernoulli_(0.3, generator=g), (torch.bool,)),
    "bernoulli_tensor": (
        lambda t, g: t.bernoulli_(torch.full(t.shape, 0.3), generator=g),
        (torch.float32, torch.int64),
    ),
    "bernoulli_tensor64": (
        lambda t, g: t.bernoulli_(torch.full(t.shape, 0.3, dtype=torch.float64), generator=g),
        (torch.float64, torch.uint8),
    ),
    "exponential_": (lambda t, g: t.exponential_(1.5, generator=g), FLOATING),
    "cauchy_": (lambda t, g: t.cauchy_(0.1, 2.0, generator=g), FLOATING),
    "geometric_": (lambda t, g: t.geometric_(0.2, generator=g), (*FLOATING, *INTEGER)),
    "log_normal_": (lambda t, g: t.log_normal_(0.1, 0.5, generator=g), FLOATING),
    "random_": (lambda t, g: t.random_(generator=g), FLOATING + INTEGER),
    "random_bool": (lambda t, g: t.random_(generator=g), (torch.bool,)),
    "random_to": (lambda t, g: t.random_(100, generator=g), FLOATING + INTEGER),
    "random_from_to": (lambda t, g: t.random_(-50, 70, generator=g), (torch.int64, torch.int8)),
    "random_above_2_28": (
        lambda t, g: t.random_(0, 1 << 30, generator=g),
        (torch.int64, torch.int32, torch.float32),
    ),
    "random_above_2_32": (
        lambda t, g: t.random_(-(1 << 40), 1 << 40, generator=g),
        (torch.int64, torch.float64),
    ),
}

LAYOUTS: dict[str, Callable[[int, torch.dtype], torch.Tensor]] = {
    "contiguous": lambda n, d: torch.zeros(n, dtype=d),
    "matrix": lambda n, d: torch.empty(n, 3, dtype=d),
    "transposed": lambda n, d: torch.empty(n, 5, dtype=d).t(),
    "every_second": lambda n, d: torch.zeros(2 * n, dtype=d)[::2],
    "tail_of_storage": lambda n, d: torch.zeros(n + 3, dtype=d)[3:],
    "channels_last": lambda n, d: torch.empty(2, 3, n, 2, dtype=d).to(
        memory_format=torch.channels_last
    ),
    "column": lambda n, d: torch.zeros(n, 4, dtype=d)[:, 1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
        for name, (_, dtypes) in FILLS.items()
        for dtype in dtypes
    ],
)
def test_in_place_fill(fill: str, dtype: torch.dtype, layout: str) -> None:
    def build() -> list[torch.Tensor]:
        tensors = [torch.randn(3)]
        for size in SIZES:
            tensor = LAYOUTS[layout](size, dtype)
            FILLS[fill][0](tensor, None)
            tensors += [tensor, torch.rand(1)]  # the draw after it stands where eager's does
        return tensors

    shuffle = list(FILLS).index(fill) * len(LAYOUTS) + list(LAYOUTS).index(layout)
    orders = ("shuffled", "alone")
    compare(build, shuffle=shuffle, orders=orders, min_tensors=1 + 2 * len(SIZES))


@pytest.mark.parametrize("fill", FILLS)
def test_private_generator(fill: str) -> None:
    draw, dtypes = FILLS[fill]

    def build() -> dict[str, Any]:
        private = torch.Generator().manual_seed(2147483700)
        tensors = []
        for size in SIZES:
            for dtype in dtypes:
                tensors.append(draw(torch.empty(size, dtype=dtype), private))
            tensors.append(torch.randn(2))  # the default generator is not disturbed
        return {"tensors": tensors, "state": private.get_state(), "generator": private}

    compare(build, expect_lazy=0.1)  # get_state is real and large beside the small tensors


FUNCTIONS: dict[str, Callable[[int], Any]] = {
    "randn": lambda n: torch.randn(n),
    "randn_bfloat16": lambda n: torch.randn(n, dtype=torch.bfloat16),
    "randn_complex": lambda n: torch.randn(n, dtype=torch.complex64),
    "rand": lambda n: torch.rand(n, 2),
    "randint": lambda n: torch.randint(10, (n,)),
    "randint_low": lambda n: torch.randint(-5, 10, (n,), dtype=torch.int32),
    "randint_wide": lambda n: torch.randint(0, 1 << 35, (n,)),
    "randperm": lambda n: torch.randperm(n),
    "randperm_int32": lambda n: torch.randperm(n, dtype=torch.int32),
    "rand_like": lambda n: torch.rand_like(torch.empty(3, n).t()),
    "randn_like": lambda n: torch.randn_like(torch.empty(n, dtype=torch.float64)),
    "randint_like": lambda n: torch.randint_like(torch.empty(n), 3, 9),
    "normal_scalar": lambda n: torch.normal(1.0, 2.0, (n,)),
    "normal_mean": lambda n: torch.normal(torch.arange(float(n)), 2.0),
    "normal_std": lambda n: torch.normal(0.5, torch.linspace(0, 1, n)),
    "normal_both": lambda n: torch.normal(torch.arange(float(n)), torch.linspace(0, 1, n)),
    "bernoulli": lambda n: torch.bernoulli(torch.linspace(0, 1, n)),
    "bernoulli_p": lambda n: torch.bernoulli(torch.empty(n), 0.25),
    "dropout": lambda n: torch.dropout(torch.ones(n), 0.3, True),
    "dropout_off": lambda n: torch.dropout(torch.ones(n), 0.3, False),
    "dropout_all": lambda n: torch.nn.functional.dropout(torch.ones(n), 1.0, True),
    "alpha_dropout": lambda n: torch.nn.functional.alpha_dropout(torch.ones(n), 0.3, True),
    "feature_dropout": lambda n: torch.nn.functional.dropout2d(torch.ones(2, n, 2, 2), 0.3, True),
    "rand_out": lambda n: torch.rand(n, out=torch.empty(n)),
    "randn_out": lambda n: torch.randn(n, out=torch.empty(n)),
    "randperm_out": lambda n: torch.randperm(n, out=torch.empty(n, dtype=torch.int64)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functional(function: str) -> None:
    def build() -> list[Any]:
        tensors: list[Any] = []
        for size in SIZES:
            tensors += [FUNCTIONS[function](size), torch.randn(3)]
        return tensors

    compare(build)


# How often these draw depends on the values drawn or given, so they run when they are recorded.
DATA_DEPENDENT: dict[str, Callable[[int], Any]] = {
    "rrelu": lambda n: torch.nn.functional.rrelu(torch.linspace(-1, 1, n), training=True),
    "poisson": lambda n: torch.poisson(torch.linspace(0, 20, n)),
    "binomial": lambda n: torch.binomial(torch.full((n,), 12.0), torch.full((n,), 0.4)),
    "standard_gamma": lambda n: torch._standard_gamma(torch.linspace(0.1, 3, n)),
    "dirichlet": lambda n: torch._sample_dirichlet(torch.full((n, 3), 0.5)),
    "multinomial_replacement": lambda n: torch.multinomial(
        torch.linspace(0.1, 1, n + 5), 4, replacement=True
    ),
    "multinomial": lambda n: torch.multinomial(torch.linspace(0.1, 1, n + 5), 4),
    "multinomial_rows": lambda n: torch.multinomial(torch.linspace(0.1, 1, 12).view(3, 4), 2),
    "multinomial_one": lambda n: torch.multinomial(torch.linspace(0.1, 1, n + 1), 1),
    "gumbel_softmax": lambda n: torch.nn.functional.gumbel_softmax(torch.zeros(n + 1, 4)),
}


@pytest.mark.parametrize("function", DATA_DEPENDENT)
def test_data_dependent(function: str) -> None:
    def build() -> list[Any]:
        tensors: list[Any] = []
        for size in SIZES:
            tensors += [DATA_DEPENDENT[function](size), torch.randn(3)]
        return tensors

    compare(build, expect_lazy=None)


@pytest.mark.parametrize("draws", [*range(1, 20), 307, 311, 312, 313, 623, 624, 625, 1247, 1248])
def test_position_in_the_engine_block(draws: int) -> None:
    """Every offset inside a block of 624 words, and the cached double normal, are kept."""

    def build() -> list[torch.Tensor]:
        return [
            torch.empty(draws).uniform_(),
            torch.randn(3),  # serial: may leave a cached normal
            torch.randn(17),
            torch.empty(5, dtype=torch.float64).normal_(),
            torch.empty(20).bernoulli_(0.5),
            torch.randn(7),
        ]

    compare(build)


@pytest.mark.core
@pytest.mark.parametrize("size", [(1 << 20) + 5, 3 << 20])
def test_sizes_at_which_jumping_ahead_pays(size: int) -> None:
    def build() -> list[torch.Tensor]:
        torch.rand(size)  # dropped: only its draws remain
        return [torch.randn(size, dtype=torch.bfloat16), torch.randn(5), torch.rand(33)]

    compare(build, min_bytes=2 * size)


@pytest.mark.core
def test_seeding_reading_and_forking_inside_the_context() -> None:
    def build() -> dict[str, Any]:
        first = torch.randn(100)
        state = torch.get_rng_state()
        second = torch.rand(10)
        torch.set_rng_state(state)
        again = torch.rand(10)
        with torch.random.fork_rng():
            forked = torch.randn(3)
            torch.manual_seed(7)
            reseeded = torch.randn(20)
        after = torch.randn(5)
        seed = torch.initial_seed()
        torch.manual_seed(2**40 + 3)
        last = torch.empty(3).normal_()
        return {
            "tensors": [first, second, again, forked, reseeded, after, last],
            "seed": seed,
            "state": state,
        }

    compare(build, expect_lazy=0.1)  # get_rng_state is real: 5 kB beside 604 bytes


def test_state_of_a_generator_saved_between_lazy_draws_replays_them() -> None:
    def build() -> dict[str, Any]:
        generator = torch.Generator()
        generator.manual_seed(3)
        torch.randn(1000, generator=generator)
        saved = generator.get_state()
        ahead = torch.randn(1000, generator=generator)
        generator.set_state(saved)
        again = torch.randn(1000, generator=generator)
        copy = generator.clone_state()
        return {
            "ahead": ahead,
            "again": again,
            "copied": torch.rand(20, generator=copy),
            "own": torch.rand(20, generator=generator),
            "generators": [generator, copy],
        }

    compare(build)


def test_a_generator_that_died_before_materializing() -> None:
    def build() -> list[torch.Tensor]:
        def draw(seed: int) -> torch.Tensor:
            return torch.randn(50, generator=torch.Generator().manual_seed(seed))

        return [draw(seed) for seed in range(5)]

    compare(build)


def test_a_generator_reseeded_after_recording_changes_nothing() -> None:
    generators = []

    def build() -> torch.Tensor:
        generator = torch.Generator().manual_seed(11)
        generators.append(generator)
        tensor = torch.randn(64, generator=generator)
        generator.manual_seed(99)
        return tensor

    compare(build)
    assert len(generators) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_distributions_sample_like_eager(dtype: torch.dtype) -> None:
    def build() -> list[torch.Tensor]:
        zero, one = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
        return [
            torch.distributions.Normal(zero, one, validate_args=False).sample((20,)),
            torch.distributions.Uniform(zero, one, validate_args=False).sample((3,)),
            torch.randn(2),
        ]

    compare(build)
