"""The launcher notices ranks that raise, abort or hang, and goes on afterwards."""

from __future__ import annotations

import time

import pytest
from launch import RunRanks


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        ("raise_on_rank_one", "ArithmeticError: wrong on purpose"),
        ("abort_on_rank_one", "rank 1, exit code -6"),
        ("hang", "Timeout"),
    ],
)
def test_a_rank_that_ends_badly_fails_the_test(run_ranks: RunRanks, job: str, shown: str) -> None:
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=shown):
        run_ranks(2, f"failing:{job}", seconds=3)
    assert time.monotonic() - started < 30
    # The next job is not disturbed.
    assert len(run_ranks(2, "placed:state")) == 2
