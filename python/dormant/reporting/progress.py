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
    """The function that an operation calls with (done, total) bytes, or None.

    Args:
        progress: the option of this name: a function; True for a bar, False for none; None for a
            bar if stderr is a terminal.
        title: the title of the bar.
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
    # sys.stderr is None if the process was started with stderr closed.
    return progress is True or (progress is None and sys.stderr is not None and sys.stderr.isatty())


class _Bar:
    """A bar on stderr or in a notebook, shown after one second.

    tqdm is not imported for shorter work; if it is not installed, there is no bar.
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
            except ImportError:  # a missing bar must not stop the work
                self._begin = math.inf
                return
            self._bar = tqdm(
                desc=self._title,
                file=getattr(sys.stderr, "bar_stream", None),  # in the command
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                leave=False,
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            with self._bar.get_lock():  # otherwise others could write between its steps
                self._bar.close()
