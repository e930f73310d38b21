"""Microseconds per elementary operator on tiny tensors, recorded lazily and run eagerly."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import dormant
from benchmarks.fingerprint import bits
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim

NAME = "operators"
TITLE = "one operator on a tensor of 4 x 4, recorded or run"
_AIM = 2.0  # microseconds


@dataclass(frozen=True)
class Operator:
    """One call.

    Attributes:
        call: the operator, on two initialized tensors.
        elementary: False for those that several recorded operators make up.
    """

    call: Callable[[torch.Tensor, torch.Tensor], Any]
    elementary: bool = True


OPERATORS: dict[str, Operator] = {
    "empty": Operator(lambda x, y: torch.empty(4, 4)),
    "zeros": Operator(lambda x, y: torch.zeros(4, 4), elementary=False),
    "arange": Operator(lambda x, y: torch.arange(16), elementary=False),
    "normal_": Operator(lambda x, y: x.normal_()),
    "uniform_": Operator(lambda x, y: x.uniform_()),
    "fill_": Operator(lambda x, y: x.fill_(2.0)),
    "zero_": Operator(lambda x, y: x.zero_()),
    "mul_(scalar)": Operator(lambda x, y: x.mul_(2.0)),
    "add_(scalar)": Operator(lambda x, y: x.add_(2.0)),
    "copy_": Operator(lambda x, y: x.copy_(y)),
    "add": Operator(lambda x, y: x + y),
    "mul(scalar)": Operator(lambda x, y: x * 2.0),
    "clone": Operator(lambda x, y: x.clone()),
    "to(bfloat16)": Operator(lambda x, y: x.to(torch.bfloat16)),
    "cat": Operator(lambda x, y: torch.cat([x, y])),
    "view": Operator(lambda x, y: x.view(16)),
    "slice": Operator(lambda x, y: x[1:3]),
    "transpose": Operator(lambda x, y: x.T),
    "detach": Operator(lambda x, y: x.detach()),
}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    for name, equal in options.call("benchmarks.operators:compare").items():
        outcome.check(name, [] if equal else [name])
    calls, rounds = (50, 3) if options.quick else (1000, 5 * options.repeat)
    measured = options.call("benchmarks.operators:measure", calls=calls, rounds=rounds)
    sheet = Sheet(
        f"{calls} calls each, median (fastest) of {rounds} rounds, microseconds per call",
        ("", "eager", "lazy", "lazy - eager", "lazy / eager", "faster", "materialize"),
    )
    elementary = []
    for name, figures in measured.items():
        outcome.measurements.append({"operator": name, **figures})
        eager, lazy, later = (
            statistics.median(figures[way]) for way in ("eager", "lazy", "materialize")
        )
        if OPERATORS[name].elementary:
            elementary.append(lazy)
        sheet.rows.append(
            [
                name if OPERATORS[name].elementary else f"{name} (several)",
                f"{eager:.2f} ({min(figures['eager']):.2f})",
                f"{lazy:.2f} ({min(figures['lazy']):.2f})",
                f"{lazy - eager:+.2f}",
                f"{lazy / eager:.2f}",
                "lazy" if lazy < eager else "eager",
                f"{later:.2f}",
            ]
        )
    sheet.notes += [
        "processor time of a call from Python, the interpreter's share included in both; one "
        "thread; eager and lazy rounds alternate in one process",
        aim(
            "median over the elementary operators: lazy", statistics.median(elementary), _AIM, "us"
        ),
        aim("slowest elementary operator: lazy", max(elementary), _AIM, "us"),
    ]
    outcome.sheets.append(sheet)
    return outcome


# ---- in the child processes


def _operands(count: int) -> list[torch.Tensor]:
    return [torch.empty(4, 4).normal_() for _ in range(count)]


def compare() -> dict[str, bool]:
    """Whether each operator's result has the bits of eager's, by name."""
    equal = {}
    for name, operator in OPERATORS.items():
        torch.manual_seed(3)
        expected, x = _result(operator)
        torch.manual_seed(3)
        with dormant.lazy_init():
            got, y = _result(operator)
        if name != "empty":  # nobody wrote its values
            dormant.materialize([got, y])
            equal[name] = (
                got.dtype == expected.dtype
                and got.shape == expected.shape
                and got.stride() == expected.stride()
                and bits(got) == bits(expected)
                and bits(y) == bits(x)
            )
        else:
            equal[name] = dormant.is_lazy(got) and got.stride() == expected.stride()
    return equal


def _result(operator: Operator) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = _operands(2)
    return operator.call(x, y), x


def measure(calls: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds per call: eager, lazy, and materializing what was recorded; every round's."""
    torch.set_num_threads(1)
    gc.freeze()  # what is loaded already need not be looked through at each collection
    figures: dict[str, dict[str, list[float]]] = {
        name: {"eager": [], "lazy": [], "materialize": []} for name in OPERATORS
    }
    for round_ in range(-1, rounds):  # the first one warms up
        for name, operator in OPERATORS.items():
            eager, _ = _time(operator.call, calls)
            with dormant.lazy_init():
                lazy, results = _time(operator.call, calls)
            started = time.process_time()
            dormant.materialize(results, progress=False)
            later = (time.process_time() - started) / calls * 1e6
            if round_ >= 0:
                figures[name]["eager"].append(eager)
                figures[name]["lazy"].append(lazy)
                figures[name]["materialize"].append(later)
    return figures


def _time(
    operator: Callable[[torch.Tensor, torch.Tensor], Any], calls: int
) -> tuple[float, list[torch.Tensor]]:
    """Every call gets a tensor of its own: histories must not grow from call to call."""
    other, *operands = _operands(1 + calls)
    results: list[Any] = [None] * calls
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for position, operand in enumerate(operands):
            results[position] = operator(operand, other)
        seconds = time.process_time() - started
    finally:
        gc.enable()
    return seconds / calls * 1e6, results
