"""Makes a program of a seed: line by line, looking at what eager makes of each."""

from __future__ import annotations

import itertools
import random
import re
import warnings

import torch

from compare import storage_key

from .arguments import LARGEST, Arguments, Unfit
from .operators import AUTOGRAD, FACTORIES, GROUPS, MODULES, POINTWISE, Line, Row, lines
from .program import Program, Step, compiled
from .run import names_of

_SIZES = (
    (6.0, (0, 1, 2, 3, 4, 5, 7, 8, 16, 17)),
    (1.0, (40, 64, 129)),
    (0.3, (1100, 70_000)),
)
_MOST = 2 * LARGEST  # elements of a tensor that is kept
_MOST_VIEWS = 40  # tensors of a sequence that is kept
_HOSTILE = 0.08  # share of the lines that take what does not fit
_MODE = 0.04  # share of the new variables that are made in one of these
_MODES = ("no_grad", "no_grad", "inference_mode", "enable_grad")
_GROUPS = [(weight, lines(group), group) for weight, group in GROUPS]


class _Writer:
    """The program so far, and what eager has at this point."""

    def __init__(self, choose: random.Random, seed: int) -> None:
        self.choose = choose
        self.seed = seed
        pool = choose.choices([sizes for _, sizes in _SIZES], [weight for weight, _ in _SIZES])[0]
        self.arguments = Arguments(choose, {}, choose.sample(pool, 2))
        self.steps: list[Step] = []
        self._counter = itertools.count()
        self._start()

    def _start(self) -> None:
        """Runs the program so far from its beginning."""
        torch.manual_seed(self.seed)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        self.arguments.names = names_of(lazy=False, seen=[])
        for step in self.steps:
            self._runs(step.code)

    def _runs(self, code: str) -> bool:
        try:
            exec(compiled(code), self.arguments.names)
        except Exception:
            return False
        return True

    def _row(self) -> tuple[Line, list[Row]]:
        thread = self.arguments.thread
        if not any(True for _ in self.arguments.tensors()):
            first = [line for line in lines(FACTORIES) if not re.search(r"{t}|{f}", line.code)]
            return self.choose.choice(first), FACTORIES
        weights = [weight for weight, _, _ in _GROUPS]
        while True:
            _, found, group = self.choose.choices(_GROUPS, weights)[0]
            if thread and group in (AUTOGRAD, MODULES):
                continue
            line = self.choose.choices(found, [line.weight for line in found])[0]
            if not (thread and line.alone):
                return line, group

    def _code(self) -> tuple[str, bool]:
        """A line of code, and whether eager has to refuse it: else its values mean nothing."""
        self.arguments.hostile = self.choose.random() < _HOSTILE
        while True:
            line, group = self._row()
            try:
                code = self.arguments.fill(line.code).replace(", )", ")")
            except Unfit:
                continue
            elementwise = group is POINTWISE and "out=" not in line.code
            overlaps = self.arguments.overlaps(elementwise=elementwise)
            if overlaps and (self.arguments.foreign or not self.arguments.hostile):
                continue
            return self._statement(code), overlaps

    def _statement(self, code: str) -> str:
        thread = self.arguments.thread
        new = f"p{thread}_{next(self._counter)}" if thread else f"v{next(self._counter)}"
        if code.startswith("="):
            code = f"{new} = {code[1:]}"
            if "nn." in code or self.choose.random() > _MODE:
                return code
            return f"with torch.{self.choose.choice(_MODES)}(): {code}"
        keeps = re.match(r"[\w.\[\]]+_\(", code) or code.startswith("torch.")
        writes = re.search(r"_\(|[-+*/]=|out=|\]\s=|init", code)
        chosen = self.choose.random()
        if writes and (self.arguments.subject.requires_grad or chosen < 0.1) and chosen < 0.8:
            return f"with torch.no_grad(): {code}"
        return f"{new} = {code}" if keeps and chosen > 0.8 else code

    def add(self, *, lazy: bool) -> None:
        """Adds a line that eager has run, or refused."""
        while True:
            code, must_fail = self._code()
            if not self._runs(code) or not must_fail:
                break
            self._start()
        self.steps.append(Step(code, lazy, self.arguments.thread))
        sizes = [(name, tensor.shape) for name, tensor in self.arguments.tensors()]
        large = [n for n, shape in sizes if min(shape, default=0) < 0 or shape.numel() > _MOST]
        for name, value in self.arguments.variables():
            if isinstance(value, (tuple, list)) and len(value) > _MOST_VIEWS:
                large.append(name)
        for name in dict.fromkeys(name.split("[")[0] for name in large):
            code = f"del {name}"
            self._runs(code)
            self.steps.append(Step(code, lazy, self.arguments.thread))

    def begin_thread(self, thread: int, foreign: set[int]) -> None:
        """What follows is the thread's, which writes none of the storages there are now."""
        self.arguments.thread, self.arguments.foreign = thread, foreign
        torch.set_grad_enabled(True)  # each thread has a mode of its own

    def storages(self) -> set[int]:
        """The storages of all variables."""
        return {storage_key(t) for _, t in self.arguments.tensors() if t.layout is torch.strided}


def generate(seed: int, max_threads: int = 3) -> Program:
    """The program of a seed. It changes with the table of operators.

    Args:
        seed: of the choices; PyTorch's generators are left as they were.
        max_threads: 1 leaves out the steps of other threads than the first.

    Returns:
        A program that eager runs to its end, apart from the calls that it refuses.
    """
    state, dtype, grad = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _generate(random.Random(seed), seed, max_threads)
    finally:
        torch.set_rng_state(state)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


def _generate(choose: random.Random, seed: int, max_threads: int) -> Program:
    writer = _Writer(choose, seed)
    real, lazily, after = (choose.choice(counts) for counts in ((0, 0, 2), (8, 15, 30), (0, 3, 8)))
    for lazy, count in ((False, real), (True, lazily), (False, after)):
        for _ in range(count):
            writer.add(lazy=lazy)
    order, threads = choose.choice((0, *range(1, 8))), min(choose.choice((1, 1, 2, 3)), max_threads)
    if threads > 1:
        foreign = writer.storages() | {0}
        for thread in range(1, threads + 1):
            writer.begin_thread(thread, foreign)
            inside = choose.random() < 0.7
            for _ in range(choose.choice((4, 10))):
                writer.add(lazy=inside)
    return Program(tuple(writer.steps), order, choose.choice((1, threads)))
