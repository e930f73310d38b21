"""A progress bar for work that takes longer than a second, on a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Callback = Callable[[int, int], None]

_PATIENCE = 1.0  # seconds before the bar appears


class ProgressBar:
    """Shows (done, total) steps on stderr once the work has taken a second.

    Nothing is shown, and rich is not imported, for shorter work.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Notes that `done` of `total` steps are done."""
        if self._bar is None:
            if time.monotonic() - self._started < _PATIENCE:
                return
            try:
                from rich.console import Console
                from rich.progress import Progress
            except ImportError:  # a bar is not worth stopping the work
                self._started = math.inf
                return
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._title, total=total)
            self._bar.start()
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)


def wants_bar(progress: bool | Callback | None) -> bool:
    """Whether `progress` asks for the built-in bar: True, or None on a terminal."""
    # A process that was started with its stderr closed has none.
    return progress is True or (progress is None and sys.stderr is not None and sys.stderr.isatty())
