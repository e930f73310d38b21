"""A lock on a folder, so that one thread or process at a time works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

# Used only if folders cannot be locked; the owner of the lock removes it.
_LOCK_FILE = ".dormant-lock.tmp"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """An open folder that no other thread or process has opened with this function.

    The lock is on the folder itself (flock): it needs no file, and a killed process holds none. NFS
    and others can lock only files, because the locked object must be open for writing; there, the
    lock is on a file. If files cannot be locked either, nothing waits.

    Raises:
        OSError: the folder cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            with contextlib.suppress(OSError):
                _lock_file(descriptor, stack)
        yield descriptor


def _lock_file(folder: int, stack: contextlib.ExitStack) -> None:
    """Waits for the lock file of a folder; `stack` removes it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        lock = os.open(_LOCK_FILE, flags, 0o666, dir_fd=folder)
        stack.callback(os.close, lock)
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            return
        with contextlib.suppress(OSError):
            # Everyone who may write to the folder may lock it.
            os.fchmod(lock, os.fstat(folder).st_mode & 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            _unlink(folder)
            raise
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(_LOCK_FILE, dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(there, os.fstat(lock)):
                stack.callback(_unlink, folder)
                return


def _unlink(folder: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_LOCK_FILE, dir_fd=folder)
