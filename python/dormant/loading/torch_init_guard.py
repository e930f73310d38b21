"""transformers' functions in `torch.nn.init`, put there once for all threads that want them.

While the library initializes a model, its own functions are in the place of those of
`torch.nn.init` (`guard_torch_init_functions`). Each call takes what it finds for PyTorch's and puts
that back at its end: of two threads, the one that came second puts the library's back, for good.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

from dormant.recording.patches import Function, Patch, declare

# Held for the exchange only, and while the process forks; never while anybody initializes.
# Reentrant: a signal handler may load a model.
_lock = threading.RLock()
_inside = 0
_guard: Any = None

os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def _for_all_threads(original: Function) -> Function:
    """The first of those inside exchanges the functions, the last puts them back."""
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
        "__wrapped__",  # what its context managers run, those of decorated methods too
        "two threads leave the library's functions in torch.nn.init",
        _for_all_threads,
    )
)
