"""Runs a program eagerly or lazily, and materializes what it left."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import functools
import io
import itertools
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import dormant

from .program import Program, Step, compiled

SEED = 5
THREAD_SECONDS = 30.0


class Hang(AssertionError):
    """Threads did not end; the stacks of all are on stderr."""


@dataclass
class Outcome:
    """What a run left.

    Attributes:
        names: the program's variables.
        raised: for each step that raised, the name of the exception's type.
        seen: what the program's hooks note, in order; hooks of gradients asked for later, too.
        generators: the states of all generators.
        failure: what went wrong with dormant itself, for example while materializing.
    """

    names: dict[str, Any]
    raised: dict[int, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    generators: dict[str, bytes] = field(default_factory=dict)
    lazy_bytes: int = 0
    failure: str | None = None


def together(functions: Iterable[Callable[[], None]]) -> None:
    """Runs functions at once, a thread each, with a bounded wait."""
    functions = list(functions)
    errors: list[BaseException] = []
    barrier = threading.Barrier(max(len(functions), 1))

    def guarded(function: Callable[[], None]) -> None:
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THREAD_SECONDS)
        if thread.is_alive():
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            raise Hang(f"a thread did not end within {THREAD_SECONDS:.0f} s")
    if errors:
        raise errors[0]


def _stored(value: Any) -> Any:
    """What torch.save and torch.load make of it.

    Not as a zip, from which torch.load takes storages that cannot be resized: a lazy one can.
    """
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    out.seek(0)
    return torch.load(out, weights_only=False)


def names_of(lazy: bool, seen: list[str]) -> dict[str, Any]:
    """What every program may refer to."""

    def note(name: str) -> Callable[..., None]:
        return lambda *_, **__: seen.append(name)

    def load(model: nn.Module, state: dict[str, Any]) -> None:
        if lazy:
            dormant.load(model, state, materialize=False)
        else:
            model.load_state_dict(state, strict=False)

    return {
        "torch": torch,
        "nn": nn,
        "F": nn.functional,
        "copy": copy,
        "pickle": pickle,
        "inf": float("inf"),
        "nan": float("nan"),
        "note": note,
        "stored": _stored,
        "load": load,
        "materialize": dormant.materialize if lazy else lambda value: None,
        **{f"g{i}": torch.Generator().manual_seed(i) for i in range(4)},
    }


def _run_steps(
    steps: list[tuple[int, Step]], names: dict[str, Any], raised: dict[int, str], lazy: bool
) -> None:
    for inside, group in itertools.groupby(steps, lambda step: step[1].lazy):
        with dormant.lazy_init() if inside and lazy else contextlib.nullcontext():
            for number, step in group:
                try:
                    exec(compiled(step.code), names)
                except Exception as error:
                    raised[number] = type(error).__name__


def run(program: Program, *, lazy: bool) -> Outcome:
    """Runs all steps, those of other threads than the first at once if lazily.

    Args:
        program: what to run.
        lazy: whether `lazy_init` is entered where the program says so.

    Returns:
        What it left, not materialized.
    """
    seen: list[str] = []
    outcome = Outcome(names_of(lazy, seen), seen=seen)
    given = set(outcome.names)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.default_generator.manual_seed(SEED)
    random.seed(SEED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bodies = {
                thread: functools.partial(_run_steps, steps, outcome.names, outcome.raised, lazy)
                for thread, steps in program.by_thread.items()
            }
            if 0 in bodies:
                bodies.pop(0)()
            for group in [list(bodies.values())] if lazy else [[body] for body in bodies.values()]:
                together(group)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
    generators = {"default": torch.default_generator} | {
        name: value for name, value in outcome.names.items() if isinstance(value, torch.Generator)
    }
    outcome.generators = {
        name: bytes(generator.get_state().numpy()) for name, generator in generators.items()
    }
    made = {n: v for n, v in outcome.names.items() if n not in given and not n.startswith("__")}
    outcome.names = made
    return outcome


def _parts(names: list[str], choose: random.Random) -> list[list[str]]:
    """The names in a random order, alone or in groups."""
    choose.shuffle(names)
    parts = []
    while names:
        size = choose.choice((1, 1, 1, 2, 3, len(names)))
        parts.append(names[:size])
        names = names[size:]
    return parts


def materialize(program: Program, held: Mapping[str, torch.Tensor | nn.Module]) -> None:
    """Materializes what is held in the program's order, alone and in groups."""
    if program.order == 0:
        dormant.materialize(list(held.values()))
        return
    choose = random.Random(program.order)
    plans = [_parts(list(held), choose) for _ in range(program.threads)]

    def work(parts: list[list[str]]) -> Callable[[], None]:
        def bring() -> None:
            for part in parts:
                dormant.materialize(held[part[0]] if len(part) == 1 else [held[n] for n in part])

        return bring

    if len(plans) == 1:
        work(plans[0])()
    else:
        together([work(parts) for parts in plans])
