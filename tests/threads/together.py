"""Work done by several threads at once, which must end."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_SECONDS = 120  # far more than anything here takes: what has not ended by then hangs


def together(*works: Callable[[], Any]) -> list[Any]:
    """The results of all, each called in a thread of its own; raises what one of them raised."""
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = works[i]()
        except BaseException as error:
            errors.append(error)

    # Daemons: one that hangs must not keep the test run from ending.
    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(sys.__stderr__)
        raise AssertionError(f"{sum(t.is_alive() for t in threads)} threads hang; see stderr")
    if errors:
        raise errors[0]
    return results


def while_running(work: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """What `work` returns; another thread calls `other` again and again meanwhile."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            other()

    def run() -> Any:
        try:
            return work()
        finally:
            over.set()

    return together(run, repeat)[0]
