"""Runs a program both ways and compares everything."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import dormant
from compare import storage_key

from . import observe
from .program import Program
from .run import Hang, Outcome, materialize, run

_M_PERTURB = -6  # malloc.h
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Failure:
    """A difference.

    Attributes:
        kind: what differs; a smaller program fails in the same way if the kind is the same.
        text: where, what eager has, and what the lazy run has.
        step: the number of the step that raised in one run and not in the other.
    """

    kind: str
    text: str
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        failure: None if the runs agree.
        unsteady: eager itself read memory that nobody wrote, so nothing was compared.
        refused: calls that eager refused.
        lazy_bytes: bytes that were lazy before they were materialized.
        nbytes: bytes of all storages.
    """

    failure: Failure | None = None
    unsteady: bool = False
    refused: int = 0
    lazy_bytes: int = 0
    nbytes: int = 0


@dataclass
class _Seen:
    outcome: Outcome
    hooks: list[str]
    structure: dict[str, observe.Facts]
    values: dict[str, observe.Facts]
    gradients: dict[str, observe.Facts]

    def facts(self) -> list[Any]:
        return [
            *(self.outcome.raised, sorted(self.outcome.seen), self.outcome.generators),
            *(self.structure, self.values, self.gradients),
        ]


def _eager(program: Program, fill: int) -> _Seen:
    """An eager run in which fresh memory holds a pattern of its own."""
    _libc.mallopt(_M_PERTURB, fill)
    try:
        outcome = run(program, lazy=False)
        hooks = sorted(outcome.seen)  # of several threads in any order
        structure, values = observe.structure(outcome), observe.values(outcome)
        return _Seen(outcome, hooks, structure, values, observe.gradients(outcome))
    finally:
        _libc.mallopt(_M_PERTURB, int(os.environ.get("MALLOC_PERTURB_", "0")))


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        value = f"{len(value)} bytes {value[:24].hex(' ', 4)}"
    text = str(value)
    return text if len(text) < 300 else text[:300] + " ..."


# What is one kind of failure, by the beginning of the fact's name.
_KINDS = {
    "gradient": "gradient",
    "storage bytes": "storage bytes",
    "bits": "bits",
    "storage": "bits",
    "grad_fn": "graph",
}


def _differing(
    eager: dict[str, observe.Facts],
    lazy: dict[str, observe.Facts],
    steady: Callable[[str, object, object], bool] = lambda fact, expected, got: True,
) -> Failure | None:
    """The first fact that differs, of those of which the lazy run's says something."""
    if eager.keys() != lazy.keys():
        return Failure(
            "names",
            f"only eager has {sorted(eager.keys() - lazy.keys())}, only the lazy run "
            f"{sorted(lazy.keys() - eager.keys())}",
        )
    for name, facts in eager.items():
        others = lazy[name]
        for fact in [*facts, *(fact for fact in others if fact not in facts)]:
            expected, got = facts.get(fact), others.get(fact)
            if expected != got and steady(fact, expected, got):
                kind = next((k for prefix, k in _KINDS.items() if fact.startswith(prefix)), fact)
                text = f"{name}: {fact} is {_shown(expected)} in eager, {_shown(got)} lazily"
                if isinstance(expected, bytes) and isinstance(got, bytes):
                    pairs = zip(expected, got, strict=False)
                    at = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
                    text += f", first at byte {at}"
                return Failure(kind, text)
    return None


def _compare(program: Program, eager: _Seen) -> tuple[Failure | None, int, int]:
    try:
        lazy = run(program, lazy=True)
    except Hang as error:
        return Failure("hang", str(error)), 0, 0
    finally:
        left_on = dormant._C.set_recording(False)
    if left_on:
        return Failure("recording", "is still on after lazy_init was left"), 0, 0
    found = observe.tensors(lazy)
    storages = {
        storage_key(t): (t.untyped_storage().nbytes(), dormant.is_lazy(t))
        for t in found.values()
        if t.layout is torch.strided
    }
    nbytes = sum(n for n, _ in storages.values())
    lazy_bytes = sum(n for n, is_lazy in storages.values() if is_lazy)
    return _first_difference(program, eager, lazy), lazy_bytes, nbytes


def _first_difference(program: Program, eager: _Seen, lazy: Outcome) -> Failure | None:
    for number, step in enumerate(program.steps):
        expected, got = eager.outcome.raised.get(number), lazy.raised.get(number)
        if expected != got:
            kind = f"raised {expected} not {got}"
            text = f"{step.code!r} raised {expected} in eager, {got} lazily"
            return Failure(kind, text, number)
    if eager.hooks != sorted(lazy.seen):
        return Failure("hooks", f"eager {eager.hooks}, lazily {lazy.seen}")
    for name, state in eager.outcome.generators.items():
        if state != lazy.generators[name]:
            return Failure("generator", f"the state of generator {name} differs")
    inference = any("inference_mode" in step.code for step in program.steps)

    def steady(fact: str, expected: object, got: object) -> bool:
        # How often kernels write what they make of inference tensors is their matter
        # (docs/limits.md). What is written to it afterwards counts from there.
        if not (inference and isinstance(expected, int) and isinstance(got, int)):
            return True
        return fact != "_version" or expected - got not in (1, 2)

    if failure := _differing(eager.structure, observe.structure(lazy), steady):
        return failure
    try:
        materialize(program, observe.held(lazy))
    except Hang as error:
        return Failure("hang", f"while materializing: {error}")
    except Exception as error:
        return Failure(f"materialize raises {type(error).__name__}", str(error)[:600])
    for name, tensor in observe.tensors(lazy).items():
        if dormant.is_lazy(tensor) or dormant._C.carries_key(tensor):
            return Failure("still lazy", f"{name} after materialize")
    if failure := _differing(eager.structure, observe.structure(lazy), steady):
        return Failure(f"materialized {failure.kind}", failure.text)
    if failure := _differing(eager.values, observe.values(lazy)):
        return failure
    if failure := _differing(eager.gradients, observe.gradients(lazy)):
        return failure
    if sorted(eager.outcome.seen) != sorted(lazy.seen):
        return Failure("hooks", f"eager {eager.outcome.seen}, lazily {lazy.seen}, with gradients")
    return None


def check(program: Program, before_lazy: Callable[[], None] = lambda: None) -> Verdict:
    """Runs the program eagerly, twice, and lazily.

    Args:
        program: what to run.
        before_lazy: called when eager is done; what crashes before that is PyTorch alone.

    Returns:
        The first difference, if there is one.
    """
    eager = _eager(program, 1)
    refused = len(eager.outcome.raised)
    # The complement of the byte is written: both signs of a number.
    if eager.facts() != _eager(program, 165).facts():
        return Verdict(unsteady=True, refused=refused)
    before_lazy()
    failure, lazy_bytes, nbytes = _compare(program, eager)
    return Verdict(failure, refused=refused, lazy_bytes=lazy_bytes, nbytes=nbytes)
