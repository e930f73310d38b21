"""Installs and removes the Python functions that Dormant replaces; each feature declares its own.

They are in place only while code in the process creates lazy tensors (`in_use`), or some exist.
Each replacement first checks whether a lazy tensor is concerned, and otherwise calls the original.
If another library has wrapped a replacement in the meantime, it stays in place and does no harm.
replacement.py contains how a function is replaced without being noticed.
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

    `owner` is an object, or the name of a module ("module:Class" for a class in it) that may not be
    imported: nothing is replaced in it before it is imported.
    """

    owner: Any
    name: str
    reason: str
    wrap: Callable[[Function], Function]


# Held while the patches are installed or removed, and while the process forks, so that a child has
# all of them or none. Reentrant, because a garbage collection in the meantime may end a context.
_lock = threading.RLock()
_users = 0
_declared: list[Patch] = []
_installed: list[tuple[Patch, Undo]] = []
_waiting: list[Patch] = []  # whose owner is not imported yet, or not in this release

os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def declare(*patches: Patch) -> None:
    """Adds patches to those that are in place while lazy tensors are created or exist.

    Modules of this package call it when they are imported, which is before anything is lazy.
    """
    _declared.extend(patches)


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keeps the patches in place while open, and afterwards until no lazy tensor is left.

    Code that creates lazy tensors, such as a context or a checkpoint, does so inside this context.
    Another thread that materializes the last lazy tensor then does not remove the patches. Any
    thread may use it, and it can be nested.
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
    """Installs the patches that are not in place."""
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
    """Every declared patch, with its reason."""
    return tuple(_declared)


def installed() -> list[Patch]:
    """The patches that are in place now."""
    with _lock:
        return [patch for patch, _ in _installed]


def uninstall_if_idle() -> None:
    """Removes the patches if they are not in use and no lazy tensor exists."""
    if not _installed or _users or _C.live_storages():
        return  # the usual case, checked without the lock
    with _lock:
        if _users or _C.live_storages():
            return
        _later.wait_for(())
        while _installed:
            _, undo = _installed.pop()
            undo()
