"""Calls of the system of which the n-th fails, kills the process or is interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CALLS = ["open", "mkdir", "fsync", "link", "replace", "unlink", "rmdir", "pwrite", "stat"]


class At:
    """Calls of functions of `os`, of which the `n`-th of all does something else."""

    def __init__(self, n: int, action: Callable[[], Any], links: bool = True) -> None:
        self.n, self.action, self.links, self.calls = n, action, links, 0

    @contextlib.contextmanager
    def patched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[At]:
        with monkeypatch.context() as patched:
            for name in CALLS:
                patched.setattr(os, name, self._of(name, getattr(os, name)))
            yield self

    def _of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.n:
                self.action()
            if name == "link" and not self.links:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            return function(*args, **options)

        return call


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raised(error: BaseException) -> Callable[[], Any]:
    def action() -> None:
        raise error

    return action
