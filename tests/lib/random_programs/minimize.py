"""Deletes from a failing program what the failure does not need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from .program import Program, Step

Fails = Callable[[Program], bool]


def _without_chunks(program: Program, fails: Fails) -> Program:
    """Deletes runs of steps, long ones first, until no single step can go."""
    size = max(len(program.steps) // 2, 1)
    while True:
        at, smaller = 0, False
        while at < len(program.steps):
            steps = program.steps[:at] + program.steps[at + size :]
            candidate = replace(program, steps=steps)
            if fails(candidate):
                program, smaller = candidate, True
            else:
                at += size
        if size == 1 and not smaller:
            return program
        size = max(size // 2, 1)


def _simpler(program: Program) -> Iterator[Program]:
    """Variants with fewer threads, one context, plainer statements."""
    yield replace(program, order=0, threads=1)
    yield replace(program, threads=1)
    yield replace(program, steps=tuple(replace(step, thread=0) for step in program.steps))
    yield replace(program, steps=tuple(replace(step, lazy=True) for step in program.steps))
    for number, step in enumerate(program.steps):
        for pattern, plain in (
            (r"^with torch.no_grad\(\): ", ""),
            (r", (generator|dtype|requires_grad)=[\w.]+", ""),
            (r"^\w+ = (?=.*_\()", ""),
            (r"\.(data|detach\(\)|t\(\)|view\(-1\)|mT)(?=\W)", ""),
            (r"\[(1:|None|\.\.\., :1)\]", ""),
        ):
            code = re.sub(pattern, plain, step.code)
            if code != step.code:
                changed = (*program.steps[:number], replace(step, code=code))
                yield replace(program, steps=(*changed, *program.steps[number + 1 :]))


def _renamed(program: Program) -> Program:
    """The variables counted from 0."""
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return names.setdefault(found[0], f"v{len(names)}")

    def step(old: Step) -> Step:
        return replace(old, code=re.sub(r"\b(v\d+|p\d_\d+)\b", name, old.code))

    return replace(program, steps=tuple(step(old) for old in program.steps))


def minimize(program: Program, fails: Fails) -> Program:
    """A program that still fails, and no longer does without any of its steps.

    Args:
        program: fails.
        fails: whether a program fails in the same way.

    Returns:
        The smaller program.
    """
    while True:
        program = _without_chunks(program, fails)
        for candidate in _simpler(program):
            if candidate != program and fails(candidate):
                program = candidate
                break
        else:
            renamed = _renamed(program)
            return renamed if fails(renamed) else program
