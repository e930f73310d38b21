"""Collectives on lazy tensors: the values come to life first, and no rank waits in vain."""

from __future__ import annotations

import pytest
from jobs.collective import CALLS
from launch import RunRanks

from compare import assert_same_bits


@pytest.mark.parametrize("name", CALLS)
def test_a_collective_inside_the_context(run_ranks: RunRanks, name: str) -> None:
    compared = 0
    # On every rank, and on one whose partners already have real tensors.
    for lazy_ranks in ([0, 1], [1]):
        for result in run_ranks(2, "collective:call", name=name, lazy_ranks=lazy_ranks):
            assert len(result["eager"]) == len(result["lazy"])
            for eager, lazy in zip(result["eager"], result["lazy"], strict=True):
                assert_same_bits(eager, lazy, f"{name}, lazy on {lazy_ranks}")
                compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["all_reduce", "broadcast"])
def test_a_collective_outside_the_context(run_ranks: RunRanks, name: str) -> None:
    results = run_ranks(4, "collective:call_outside", name=name)
    for rank, result in enumerate(results):
        assert result["lazy before"]
        assert_same_bits(result["eager"], result["weight"], f"rank {rank}")
        assert_same_bits(results[0]["weight"], result["weight"], f"ranks 0 and {rank}")
