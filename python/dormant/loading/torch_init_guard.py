"""Installs transformers' functions in `torch.nn.init` once for all threads that need them.

While the library initializes a model, its own functions replace those of `torch.nn.init`
(`guard_torch_init_functions`). Each call assumes that it finds PyTorch's functions, and restores
what it found. If two threads do this at the same time, the second one restores the library's
functions, permanently.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

from dormant.recording.patches import Function, Patch, declare

# Held only for the exchange and while the process forks, never during initialization.
# Reentrant: a signal handler may load a model.
_lock = threading.RLock()
_inside = 0
_guard: Any = None

os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def _for_all_threads(original: Function) -> Function:
    """The first caller inside exchanges the functions, and the last one restores them."""
    exchanging = contextlib.contextmanager(original)

    @functools.wraps(original)
    def replacement() -> Iterator[None]:
        global _inside, _guard
        with _lock:
            if _inside == 0:
                guard = exchanging()
                guard.__enter__()
                _guard = guard
            _inside += 1
        try:
            yield
        finally:
            with _lock:
                _inside -= 1
                if _inside == 0:
                    guard, _guard = _guard, None
                    guard.__exit__(None, None, None)

    return replacement


declare(
    Patch(
        "transformers.initialization:guard_torch_init_functions",
        "__wrapped__",  # its context managers and decorated methods run this
        "if two threads use it, the library's functions stay in torch.nn.init",
        _for_all_threads,
    )
)
