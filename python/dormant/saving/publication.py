"""Files that appear in a folder whole and together, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from dormant.text.table import format_bytes


def write_bytes(descriptor: int, data: bytes, offset: int, path: Path) -> None:
    """Writes all of `data` at an offset of an open file.

    Raises:
        OSError: the system refused; with its errno, and `path` in its message.
    """
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(descriptor, data[done:], offset + done)
        except OSError as error:
            raise OSError(
                error.errno,
                f"dormant: save: writing {len(data) - done} bytes at offset {offset + done} of "
                f"{path}: {error.strerror}",
            ) from error


class Publication:
    """New files of one folder, under temporary names until `publish` gives them their own.

    As a context manager it removes what was not published, whatever ends it. A killed process
    leaves at most temporary files, those of an earlier save among them: they begin with a dot and
    end in ".tmp".

    Args:
        folder: an existing folder.

    Attributes:
        folder: the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[Path, Path] = {}

    def __enter__(self) -> Publication:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for path in self._waiting:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def check_room(self, nbytes: int) -> None:
        """Checks that the device has room for so many bytes, before hours go into writing them.

        Raises:
            OSError: it has less (ENOSPC).
        """
        try:
            status = os.statvfs(self.folder)
        except OSError:
            return  # what creates the files says what is wrong
        free = status.f_bavail * status.f_frsize
        # Some filesystems count no blocks.
        if status.f_blocks and nbytes > free:
            raise OSError(
                errno.ENOSPC,
                f"dormant: save: {format_bytes(nbytes)} do not fit into {self.folder}, whose "
                f"device has {format_bytes(free)} free",
            )

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[int]:
        """A file to be written: yields its descriptor, and has its bytes on the device at the end.

        The descriptor can also be read.

        Raises:
            OSError: it cannot be created, or the device reports that it did not take the bytes.
        """
        temporary = self._temporary(name)
        # Noted first: an interrupt may come as soon as the file is there.
        self._waiting[temporary] = self.folder / name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except OSError as error:
            raise OSError(
                error.errno,
                f"dormant: save: cannot create {self.folder / name}: {error.strerror}. Next: check "
                "that the folder exists and can be written.",
            ) from error
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def publish(self, *, before: Iterable[Path] = (), after: Iterable[Path] = ()) -> None:
        """Gives all files their names, in the order in which they were created.

        What they replace, and what is removed, is only set aside until all have succeeded: where
        this raises, the folder has the files that it had.

        Args:
            before: files to remove first; those that are not there are no error.
            after: files to remove once the last new one has its name.

        Raises:
            OSError: the folder does not let files be renamed or removed.
        """
        aside: list[Path] = []
        with contextlib.ExitStack() as undo:
            for path in before:
                self._set_aside(path, aside, undo)
                path.unlink(missing_ok=True)
            self._sync_folder()
            waiting = list(self._waiting.items())
            for number, (temporary, final) in enumerate(waiting, 1):
                if number == len(waiting):
                    # Others must not be met without the last one, nor the last one without them.
                    self._sync_folder()
                self._set_aside(final, aside, undo)
                temporary.rename(final)
            self._sync_folder()
            for path in after:
                self._set_aside(path, aside, undo)
                path.unlink(missing_ok=True)
            undo.pop_all()
        self._waiting.clear()
        for path in aside:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _set_aside(self, path: Path, aside: list[Path], undo: contextlib.ExitStack) -> None:
        """Keeps a file that is about to be replaced or removed; `undo` puts it back."""
        kept = self._temporary(path.name)
        aside.append(kept)
        undo.callback(_put_back, kept, path)
        if not os.path.lexists(path):
            undo.callback(path.unlink, missing_ok=True)
            return
        try:
            # A second name, so that the first one is never missing while it is replaced.
            os.link(path, kept, follow_symlinks=False)
        except OSError:  # a filesystem without second names, or a folder, which cannot be replaced
            if path.is_dir():
                raise
            path.rename(kept)

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.{secrets.token_hex(4)}.tmp"

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_back(kept: Path, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was never set aside
        kept.replace(path)
        kept.unlink(missing_ok=True)  # where both are names of one file, replacing does nothing
