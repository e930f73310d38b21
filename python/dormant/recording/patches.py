"""The life of the Python functions that dormant replaces; which ones, each feature declares itself.

They are in place only while somebody in the process makes lazy tensors (`in_use`), or some are
alive. Each replacement looks first whether a lazy tensor is concerned, and otherwise calls the
original; so one that another library has wrapped meanwhile, and that therefore stays, does no harm.
How a function is replaced without being seen is in replacement.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dormant._extension import _C
from dormant.recording.later_imports import LaterImports
from dormant.recording.replacement import Undo, replace

Function = Callable[..., Any]


@dataclass(frozen=True)
class Patch:
    """One replaced function: `owner.name` becomes `wrap(original)`.

    `owner` is the name of a module ("module:Class" for a class in it) that not everybody imports:
    nothing is replaced in one before it is imported.
    """

    owner: Any
    name: str
    reason: str
    wrap: Callable[[Function], Function]


# Held while the patches are put in place or taken away, and while the process forks: a child
# finds all of them or none. Reentrant: a garbage collection meanwhile may end a context.
_lock = threading.RLock()
_users = 0
_declared: list[Patch] = []
_installed: list[tuple[Patch, Undo]] = []
_waiting: list[Patch] = []  # for what is not imported yet, or not in this release

os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def declare(*patches: Patch) -> None:
    """Adds patches to those that are in place while lazy tensors are made or alive.

    For modules of this package, when they are imported; all of them are before anything is lazy.
    """
    _declared.extend(patches)


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keeps the patches in place while open, and afterwards until no lazy tensor is left.

    Whoever makes lazy tensors, a context or a checkpoint, does it in here: then another thread that
    materializes the last one meanwhile does not take the patches away. Any thread; it nests.
    """
    global _users
    with _lock:
        _users += 1
    try:
        _install()
        yield
    finally:
        with _lock:
            _users -= 1
        uninstall_if_idle()


def _install() -> None:
    """Puts in place what is not."""
    with _lock:
        if not _installed:
            _waiting[:] = _declared
        for patch in list(_waiting):
            owner = _owner(patch)
            if getattr(owner, patch.name, None) is not None:
                _installed.append((patch, replace(owner, patch.name, patch.wrap)))
                _waiting.remove(patch)
        _later.wait_for(
            module
            for patch in _waiting
            if isinstance(patch.owner, str)
            and (module := patch.owner.partition(":")[0]) not in sys.modules
        )


def _install_what_was_imported() -> None:
    with _lock:
        if _installed:
            _install()


_later = LaterImports(_install_what_was_imported)


def _owner(patch: Patch) -> Any:
    if not isinstance(patch.owner, str):
        return patch.owner
    module, _, name = patch.owner.partition(":")
    found = sys.modules.get(module)
    return getattr(found, name, None) if name else found


def declared() -> tuple[Patch, ...]:
    """Every patch, each with its reason."""
    return tuple(_declared)


def installed() -> list[Patch]:
    """The patches in place now."""
    with _lock:
        return [patch for patch, _ in _installed]


def uninstall_if_idle() -> None:
    """Takes the patches away where nobody uses them and no lazy tensor is alive."""
    if not _installed or _users or _C.live_storages():
        return  # the usual case, seen without the lock
    with _lock:
        if _users or _C.live_storages():
            return
        _later.wait_for(())
        while _installed:
            _, undo = _installed.pop()
            undo()
