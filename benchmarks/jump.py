"""Microseconds to record a random operator on n elements: the generator jumps over its draws."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import dormant
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet

NAME = "jump"
TITLE = "recording uniform_ on n elements, then looking at the generator"
_EAGER_UP_TO = 1 << 26  # elements that eager draws


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    counts = [1 << k for k in range(4, 33 if options.quick else 41, 4)]
    eager_up_to = 1 << 20 if options.quick else _EAGER_UP_TO
    drawn = [count + extra for count in counts if count <= eager_up_to for extra in (0, 5)]
    for count, equal in options.call("benchmarks.jump:compare", counts=drawn):
        outcome.check(f"state after {count} draws", [] if equal else ["state"])
    sheet = Sheet(
        "microseconds of processor time, median",
        ("n", "eager draws", "jump, n not seen before", "jump, same n again", "faster"),
    )
    for row in options.call(
        "benchmarks.jump:measure",
        counts=counts,
        eager_up_to=eager_up_to,
        repeat=3 if options.quick else 10 * options.repeat,
    ):
        outcome.measurements.append(row)
        eager, first, again = (
            statistics.median(row[way]) if row[way] else None for way in ("eager", "first", "again")
        )
        sheet.rows.append(
            [
                f"2^{row['n'].bit_length() - 1}",
                "-" if eager is None else f"{eager:.1f}",
                f"{first:.1f}",
                f"{again:.1f}",
                "jump" if eager is None or first < eager else "eager",
            ]
        )
    sheet.notes.append(
        "each figure: torch.empty(n).uniform_() and torch.get_rng_state(), eagerly (with the "
        "values) or lazily (without); n not seen before differs from earlier ones by whole blocks"
    )
    outcome.sheets.append(sheet)
    return outcome


# ---- in the child processes

_BLOCK = 624  # draws of one twist


def _state() -> str:
    return hashlib.sha256(torch.get_rng_state().numpy()).hexdigest()


def compare(counts: list[int]) -> list[tuple[int, bool]]:
    """Whether the generator is where eager leaves it, from a fresh seed and from amid a block."""
    results = []
    for count in counts:
        states = []
        for build in (_draw, _jump):
            torch.manual_seed(1)
            build(count)
            middle = _state()
            torch.rand(7)
            build(count)
            states.append((middle, _state()))
        results.append((count, states[0] == states[1]))
    return results


def _draw(count: int) -> None:
    torch.empty(count).uniform_()


def _jump(count: int) -> None:
    with dormant.lazy_init():
        torch.empty(count).uniform_()


def measure(counts: list[int], eager_up_to: int, repeat: int) -> list[dict[str, Any]]:
    """Microseconds for each count; every sample's."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    _time(_jump, 1 << 24)
    rows = []
    for count in counts:
        eager = [_time(_draw, count) for _ in range(3 if count <= eager_up_to else 0)]
        with dormant.lazy_init():
            first = [_time(_draw, count + (1 + k) * _BLOCK) for k in range(repeat)]
            _draw(count)
            again = [_time(_draw, count) for _ in range(repeat)]
        rows.append({"n": count, "eager": eager, "first": first, "again": again})
    return rows


def _time(draw: Callable[[int], None], count: int) -> float:
    started = time.process_time()
    draw(count)
    torch.get_rng_state()
    return (time.process_time() - started) * 1e6
