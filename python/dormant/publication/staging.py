"""Hidden folders for files that have no name yet, and their removal after a process was killed.

The process that creates a folder holds a lock (flock) on a file in it as long as the folder is in
use, and the system releases the lock with the process. A folder that no process holds is therefore
abandoned. This is only true if the locks of all processes are visible: not from another machine,
and not through another mount of a filesystem with local locks. Therefore, the name contains the
boot of the system and the mounted filesystem on which the folder was created. Folders that were
created elsewhere are left alone, and so are those that were created without locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_FILES = "files"
_UNLOCKED = "unlocked"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Staging]:
    """A new hidden folder in `folder`, which is removed at the end.

    If the process is killed, `remove_abandoned` removes what is left of it.

    Raises:
        OSError: nothing can be created in `folder`.
    """
    maker, place = os.getpid(), _place_of(folder)
    while True:
        path = folder / f".dormant-{place}-{secrets.token_hex(8)}.tmp"
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102  (tests let system calls fail)
            hidden = Staging(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # noqa: PTH106
            if isinstance(error, FileNotFoundError) and folder.is_dir():
                continue  # taken for abandoned before it was locked
            raise
        with hidden:
            try:
                if place != _UNLOCKED and not hidden.lock():
                    place = _UNLOCKED
                    continue
                hidden.make_files()
            except FileNotFoundError:
                continue
            else:
                yield hidden
                return
            finally:
                # A process that was forked in the meantime does not own it.
                if os.getpid() == maker and not hidden.is_kept:
                    hidden.remove()


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes of this user left in `folder`; errors are ignored.

    Anything else with such a name stays: folders that a living process uses, folders that may have
    been created on another machine, links, and folders of other users.
    """
    with contextlib.suppress(OSError):
        place = _place_of(folder)
        name = re.compile(rf"\.dormant-{place}-[0-9a-f]{{16}}\.tmp")
        for found in os.listdir(folder) if place != _UNLOCKED else ():  # noqa: PTH208
            if name.fullmatch(found):
                with contextlib.suppress(OSError), Staging(folder / found) as hidden:
                    hidden.remove_if_abandoned()


def _place_of(folder: Path) -> str:
    """Identifies all processes that see each other's locks on files in `folder`."""
    try:
        boot = _BOOT.read_text()
    except OSError:
        return _UNLOCKED
    device = os.stat(folder).st_dev  # noqa: PTH116
    # As csrc/publication/staging.cpp names it: each removes what the other left.
    place = f"{boot} {device}".encode()
    return hashlib.sha1(place, usedforsecurity=False).hexdigest()[:16]


class Staging:
    """A hidden folder. All operations use the folder that was opened, even if its path changed.

    It contains the lock, if there is one, and the folder `files`, which is created last and removed
    first: without a lock, there is nothing to lose.

    Attributes:
        files: a folder for files that get their names later.
        is_kept: whether it stays at the end.
    """

    def __init__(self, path: Path) -> None:
        self.files = path / _FILES
        self.is_kept = False
        self._path = path
        self._lock: int | None = None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._folder = os.open(path, flags)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._folder)
        if self._lock is not None:
            os.close(self._lock)

    def lock(self) -> bool:
        """Creates the lock and takes it; False if the system has no locks.

        Raises:
            FileNotFoundError: another process was faster, and is removing the folder.
        """
        self._open_lock(os.O_CREAT | os.O_EXCL)
        try:
            taken = self._take_lock()
        except FileNotFoundError:
            raise
        except OSError:
            return False
        if not taken:
            raise FileNotFoundError(self._path)
        return True

    def make_files(self) -> None:
        """Creates the folder for the files to publish."""
        os.mkdir(_FILES, dir_fd=self._folder)

    def remove_if_abandoned(self) -> None:
        """Removes it if the process that created it is known to be gone."""
        if os.fstat(self._folder).st_uid != os.geteuid():
            return
        try:
            self._open_lock(0)
        except FileNotFoundError:
            # Its owner may be alive and about to create the lock; then it is no longer empty.
            os.rmdir(self._path)  # noqa: PTH106
            return
        if self._take_lock():
            self.remove()

    def keep(self) -> Path:
        """Keeps it permanently, and returns its path."""
        self.is_kept = True
        kept = self._path.with_name(f".dormant-kept-{secrets.token_hex(8)}.tmp")
        try:
            os.rename(self._path, kept)  # noqa: PTH104
        except OSError:
            return self._path
        return kept

    def remove(self) -> None:
        """Removes the folder and its contents, as far as the system allows."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                self._remove_files()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_LOCK, dir_fd=self._folder)
            os.rmdir(self._path)  # noqa: PTH106

    def _open_lock(self, flags: int) -> None:
        flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._lock = os.open(_LOCK, flags, 0o600, dir_fd=self._folder)

    def _take_lock(self) -> bool:
        """Takes the lock, unless another one has it, or had it and removed it."""
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        there = os.stat(_LOCK, dir_fd=self._folder, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(self._lock))

    def _remove_files(self) -> None:
        for _, folders, files, within in os.fwalk(_FILES, topdown=False, dir_fd=self._folder):
            for name in files:
                os.unlink(name, dir_fd=within)
            for name in folders:
                try:
                    os.rmdir(name, dir_fd=within)
                except NotADirectoryError:  # a link to one
                    os.unlink(name, dir_fd=within)
        os.rmdir(_FILES, dir_fd=self._folder)
