"""A progress bar for work that takes longer than a second, on a terminal."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Callback = Callable[[int, int], None]

_PATIENCE = 1.0  # seconds before the bar appears


@contextlib.contextmanager
def following(progress: bool | Callback | None, title: str) -> Iterator[Callback | None]:
    """What an operation calls with (done, total) bytes; None where nobody wants to know.

    Args:
        progress: the option of that name: a function; True for a bar, False for none; None for a
            bar where stderr is a terminal.
        title: what the bar shows.
    """
    if callable(progress):
        yield progress
    elif wants_bar(progress):
        bar = _Bar(title)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield None


def wants_bar(progress: bool | None) -> bool:
    """Whether `progress` asks for the built-in bar: True, or None on a terminal."""
    # A process that was started with its stderr closed has none.
    return progress is True or (progress is None and sys.stderr is not None and sys.stderr.isatty())


class _Bar:
    """A bar on stderr, or in a notebook, once the work has taken a second.

    tqdm is not imported for shorter work; where it is not installed there is no bar.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._begin = time.monotonic() + _PATIENCE
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() < self._begin:
                return
            try:
                from tqdm.auto import tqdm  # type: ignore[import-untyped]
            except ImportError:  # a bar is not worth stopping the work
                self._begin = math.inf
                return
            self._bar = tqdm(
                desc=self._title, unit="B", unit_scale=True, unit_divisor=1024, leave=False
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
