"""The life of the Python functions that dormant replaces; which ones, each feature declares itself.

They are in place only while somebody in the process makes lazy tensors (`in_use`), or some are
alive. Each replacement looks first whether a lazy tensor is concerned, and otherwise calls the
original; so one that another library has wrapped meanwhile, and that therefore stays, does no harm.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils._device import _device_constructors

from dormant._extension import _C

Function = Callable[..., Any]


@dataclass(frozen=True)
class Patch:
    """One replaced function: `owner.name` becomes `wrap(original)`.

    `owner` is the name of a module ("module:Class" for a class in it) that not everybody imports:
    nothing is replaced in one that is not imported.
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
_installed: list[tuple[Patch, Function, Function | None]] = []
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
            # `torch.device` as a context keeps a list of the functions that make tensors from its
            # first use on (torch/utils/_device.py): it must be of the originals.
            _device_constructors()
            _waiting[:] = _declared
        for patch in list(_waiting):
            owner = _owner(patch)
            original = getattr(owner, patch.name, None)
            if original is None:
                continue
            _waiting.remove(patch)
            replacement = patch.wrap(original)
            own = vars(owner).get(patch.name)
            setattr(owner, patch.name, replacement)
            _installed.append((patch, replacement, own))


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
        return [patch for patch, _, _ in _installed]


def uninstall_if_idle() -> None:
    """Takes the patches away where nobody uses them and no lazy tensor is alive."""
    if not _installed or _users or _C.live_storages():
        return  # the usual case, seen without the lock
    with _lock:
        if _users or _C.live_storages():
            return
        while _installed:
            patch, replacement, own = _installed.pop()
            owner = _owner(patch)
            if owner is None or vars(owner).get(patch.name) is not replacement:
                continue  # wrapped by someone else meanwhile, who still calls ours
            if own is None:
                delattr(owner, patch.name)  # it was inherited
            else:
                setattr(owner, patch.name, own)
