"""values="fast": the distributions of eager construction, other values, the same every time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits

pytestmark = pytest.mark.core

SEED = 11
N = 200_003


def lazily(build: Callable[[], torch.Tensor], seed: int = SEED) -> torch.Tensor:
    torch.manual_seed(seed)
    with dormant.lazy_init():
        return build()


def fast(build: Callable[[], torch.Tensor], seed: int = SEED) -> torch.Tensor:
    tensor = lazily(build, seed)
    dormant.materialize(tensor, values="fast")
    return tensor


def distance(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's, between two samples, in units in which 1.95 is met once in 1000."""
    ordered = torch.cat([values, expected]).double().sort().values
    below = [
        torch.searchsorted(sample.double().sort().values, ordered, right=True) / sample.numel()
        for sample in (values, expected)
    ]
    sizes = values.numel() * expected.numel() / (values.numel() + expected.numel())
    return float((below[0] - below[1]).abs().max()) * math.sqrt(sizes)


DISTRIBUTIONS: dict[str, Callable[[], torch.Tensor]] = {
    "uniform": lambda: torch.empty(N).uniform_(-3, 5),
    "normal": lambda: torch.empty(N).normal_(0.5, 2),
    "normal, float64": lambda: torch.empty(N, dtype=torch.float64).normal_(0.5, 2),
    "normal, cast": lambda: torch.empty(N).normal_(0.5, 2).to(torch.bfloat16),
    "uniform, float16": lambda: torch.empty(N, dtype=torch.float16).uniform_(-3, 5),
    "bernoulli": lambda: torch.empty(N).bernoulli_(0.3),
    "truncated normal": lambda: nn.init.trunc_normal_(torch.empty(N), std=0.02),
    "kaiming": lambda: nn.init.kaiming_uniform_(torch.empty(500, 400)),
    "transposed": lambda: torch.empty(500, 400).normal_().t().contiguous(),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_distribution_is_eagers_and_the_values_are_not(name: str) -> None:
    build = DISTRIBUTIONS[name]
    got = fast(build)
    torch.manual_seed(SEED + 1)  # a sample of its own
    eager = build()
    assert got.dtype == eager.dtype
    assert distance(got.flatten(), eager.flatten()) < 1.95
    for power in (1, 2, 3, 4):
        moments = [t.double().pow(power) for t in (got, eager)]
        error = float(torch.cat([m.flatten() for m in moments]).std()) / math.sqrt(got.numel() / 2)
        assert abs(float(moments[0].mean() - moments[1].mean())) < 4 * error
    torch.manual_seed(SEED)
    assert not torch.equal(got, build())


def test_neighbors_tensors_and_seeds_are_independent() -> None:
    first = fast(lambda: torch.randn(N))
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        pair = [torch.randn(N), torch.randn(N)]
    dormant.materialize(pair, values="fast")
    samples = {
        "the next element": (first[:-1], first[1:]),
        "the next tensor": (pair[0], pair[1]),
        "the next seed": (first, fast(lambda: torch.randn(N), SEED + 1)),
    }
    assert_same_bits(first, pair[0], "the first of two is the only one of one")
    for name, (a, b) in samples.items():
        assert abs(float((a * b).mean())) < 4 / math.sqrt(N), name


@pytest.mark.threads
def test_threads_tiles_and_order_change_nothing() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Embedding(3000, 90, padding_idx=1), nn.Linear(90, 2000))

    def built(threads: int, budget: int | None, reverse: bool) -> dict[str, torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(SEED)
            with dormant.lazy_init():
                module = model()
            parameters = list(module.parameters())
            for parameter in reversed(parameters) if reverse else parameters:
                dormant.materialize(parameter, values="fast", memory_budget=budget)
        finally:
            torch.set_num_threads(before)
        return module.state_dict()

    expected = built(1, None, False)
    for threads, budget, reverse in [(2, None, False), (1, 60_000, True), (2, 300_000, True)]:
        for name, tensor in built(threads, budget, reverse).items():
            assert_same_bits(expected[name], tensor, f"{name}, {threads} threads, {budget} bytes")


def test_a_part_is_that_part_of_the_whole() -> None:
    whole = fast(lambda: torch.empty(700, 300).normal_())
    for part in (slice(100, 350), slice(13, 14)):
        got = fast(lambda part=part: torch.empty(700, 300).normal_()[:, part].clone())
        assert_same_bits(whole[:, part].contiguous(), got)


def test_ties_stay_tied_and_equal() -> None:
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model = nn.Sequential(nn.Embedding(50, 20), nn.Linear(20, 50, bias=False))
        model[1].weight = model[0].weight
        copy = model[0].weight.detach().clone()
    dormant.materialize(model, values="fast")
    dormant.materialize(copy, values="fast")
    assert model[1].weight is model[0].weight
    assert_same_bits(copy, model[0].weight.detach())


def test_the_generator_stands_where_eager_leaves_it() -> None:
    tensor = lazily(lambda: torch.randn(1000))
    state = torch.get_rng_state()
    dormant.materialize(tensor, values="fast")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(SEED)
    torch.randn(1000)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.init.orthogonal_(torch.empty(30, 30)),
        lambda: torch.empty(1000).exponential_(),
        lambda: torch.randn(15),
        lambda: torch.full((9, 9), 2.5).mul_(3),
    ],
    ids=["QR", "exponential", "fifteen normal numbers", "nothing random"],
)
def test_what_has_no_fast_values_is_exact(build: Callable[[], torch.Tensor]) -> None:
    got = fast(build)
    torch.manual_seed(SEED)
    assert_same_bits(build(), got)


def test_the_report_says_which_values() -> None:
    report = dormant.materialize(lazily(lambda: torch.randn(1000)), values="fast")
    assert report.values == "fast"
    assert report.random_path.startswith("Philox 4x32-10")
    assert report.count("initialized") == 1
    assert "Philox 4x32-10, not PyTorch's values" in str(report)
    assert report.to_dict()["values"] == "fast"
    exact = dormant.materialize(lazily(lambda: torch.randn(1000)))
    assert exact.values == "exact"
    assert "Philox" not in str(exact)
