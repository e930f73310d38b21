"""Work that an interrupt must not stop halfway."""

from __future__ import annotations

import threading
from collections.abc import Callable


def uninterrupted(work: Callable[[], None]) -> None:
    """Runs `work` to its end; an interrupt during it is raised afterwards.

    Python raises KeyboardInterrupt, and exceptions of signal handlers, only in its main thread, but
    between any two instructions, including those that undo something.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    failures: list[BaseException] = []
    may_begin, is_done = threading.Event(), threading.Event()
    interrupt: BaseException | None = None

    def run() -> None:
        may_begin.wait()
        try:
            if interrupt is None:
                work()
        except BaseException as error:  # raised again below
            failures.append(error)
        finally:
            is_done.set()

    # No Thread.join: one that is interrupted takes the thread for ended (bpo-45274).
    thread = threading.Thread(target=run, name="dormant-publish", daemon=True)
    try:
        thread.start()
        may_begin.set()
    except RuntimeError:  # there are no more threads, or the interpreter ends
        work()
        return
    except BaseException as error:
        interrupt = error
        if not may_begin.is_set():
            may_begin.set()
            raise
    while not is_done.is_set():
        try:
            is_done.wait()
        except BaseException as error:  # raised again below
            interrupt = error
    for failure in failures:
        raise failure
    if interrupt is not None:
        raise interrupt
