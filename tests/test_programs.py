"""Random programs, a fixed number of them: `fuzz/programs.py` runs more."""

from __future__ import annotations

import pytest

from random_programs.check import check
from random_programs.generate import generate
from random_programs.program import parse

# A seed stands for another program when the table of operators changes.
SEEDS = (*range(100), 7000316, 7000423, 7000444, 7000528, 7001332, 7002106, 7002534, 41000143)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_program_does_lazily_what_it_does_eagerly(seed: int) -> None:
    program = generate(seed)
    verdict = check(program)
    assert verdict.failure is None, f"seed {seed}\n{program}\n{verdict.failure}"


@pytest.mark.parametrize("seed", range(20))
def test_the_text_of_a_program_is_the_program(seed: int) -> None:
    program = generate(seed)
    assert parse(str(program)) == program
