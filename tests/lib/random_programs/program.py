"""A program: lines of Python over a few names, each in a thread, inside the context or outside.

Its text is what a person would write, and can be read back:

    v0 = torch.empty(3).normal_()
    with lazy_init():
        v1 = v0.add(1)
    thread(1)
    with lazy_init():
        v2 = v1[1:]
    materialize(order=7, threads=2)
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import CodeType

_CONTEXT = "with lazy_init():"
_INDENT = "    "
_THREAD = re.compile(r"thread\((\d+)\)")
_LAST = re.compile(r"materialize\(order=(\d+), threads=(\d+)\)")


@lru_cache(maxsize=4096)
def compiled(code: str) -> CodeType:
    """The code object of a line."""
    return compile(code, f"<{code}>", "exec")


@dataclass(frozen=True)
class Step:
    """A line of the program.

    Attributes:
        code: one statement; an exception that it raises is noted, and the program goes on.
        lazy: whether it runs inside `lazy_init`.
        thread: 0 runs first and alone; the others run beside each other, and never write what
            another reads.
    """

    code: str
    lazy: bool = True
    thread: int = 0


@dataclass(frozen=True)
class Program:
    """Steps, and how their results are materialized.

    Attributes:
        steps: in order; those of one thread lie together.
        order: 0 materializes everything in one call; else the seed of an order and of parts.
        threads: how many threads materialize at once.
    """

    steps: tuple[Step, ...]
    order: int = 0
    threads: int = 1

    @cached_property
    def by_thread(self) -> dict[int, list[tuple[int, Step]]]:
        """The steps of each thread, with their numbers in the program."""
        found: dict[int, list[tuple[int, Step]]] = {}
        for number, step in enumerate(self.steps):
            found.setdefault(step.thread, []).append((number, step))
        return dict(sorted(found.items()))

    def __str__(self) -> str:
        return "\n".join(
            [*self._lines(), f"materialize(order={self.order}, threads={self.threads})"]
        )

    def _lines(self) -> Iterator[str]:
        thread, lazy = 0, False
        for step in self.steps:
            if step.thread != thread:
                thread, lazy = step.thread, False
                yield f"thread({thread})"
            if step.lazy and not lazy:
                yield _CONTEXT
            lazy = step.lazy
            yield (_INDENT if lazy else "") + step.code


def parse(text: str) -> Program:
    """The program whose text this is; without a last line, everything is materialized at once.

    Args:
        text: as `str` of a program gives it; blank lines and lines of comments are skipped.

    Returns:
        The program.
    """
    steps = []
    thread, order, threads = 0, 0, 1
    for line in textwrap.dedent(text).splitlines():
        code = line.strip()
        if not code or code.startswith("#") or code == _CONTEXT:
            continue
        if found := _THREAD.fullmatch(code):
            thread = int(found[1])
        elif found := _LAST.fullmatch(code):
            order, threads = int(found[1]), int(found[2])
        else:
            steps.append(Step(code, line.startswith(_INDENT), thread))
    return Program(tuple(steps), order, threads)
