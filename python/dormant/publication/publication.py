"""Files that appear in a folder completely and together, or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from dormant.publication.interrupts import uninterrupted
from dormant.publication.locking import locked
from dormant.publication.staging import Staging, remove_abandoned, staging_folder
from dormant.text.table import format_bytes

# The errors of filesystems without hard links, such as FAT.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
# The errors of filesystems that cannot sync a folder.
_NO_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF}


def write_bytes(descriptor: int, data: bytes, offset: int, path: Path) -> None:
    """Writes all of `data` at an offset of an open file.

    Raises:
        OSError: the system refused; has its errno, and `path` in its message.
    """
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(descriptor, data[done:], offset + done)
        except OSError as error:
            raise OSError(
                error.errno,
                f"save: writing {len(data) - done} bytes at offset {offset + done} of "
                f"{path}: {error.strerror}",
            ) from error


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Creates a folder and its parents; an exception removes those that are new.

    Raises:
        OSError: the system refused, or a file has this name.
    """
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in absent:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


class Publication:
    """New files of one folder, in a hidden folder there until `publish` gives them their names.

    As a context manager, it removes files that were not published, however it ends. A killed
    process leaves its hidden folder, which may contain earlier contents of files; the next
    publication in the same folder removes it.

    Args:
        folder: an existing folder.
        operation: the name of the operation in errors.

    Attributes:
        folder: the same.
        operation: the same.
    """

    def __init__(self, folder: Path, operation: str = "save") -> None:
        self.folder = folder
        self.operation = operation
        self._waiting: dict[str, Path] = {}  # the written files by name
        self._numbers = itertools.count()
        self._staging: Staging | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Publication:
        remove_abandoned(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def check_room(self, nbytes: int) -> None:
        """Checks that the device has room for so many bytes, before they are written for hours.

        Raises:
            OSError: it has less room (ENOSPC).
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
                f"{self.operation}: {format_bytes(nbytes)} do not fit into {self.folder}, "
                f"whose device has {format_bytes(free)} free",
            )

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[int]:
        """A file to write: yields its descriptor, and syncs its bytes to the device at the end.

        The descriptor can also be read.

        Raises:
            OSError: it cannot be created, the file that it is to replace is read-only, or the
                device reports that it did not take the bytes.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with self._errors_name(name):
            mode = _mode_of(self.folder / name)
            path = self.temporary_path()
            descriptor = os.open(path, flags, 0o666)
        with _finished(descriptor, mode):
            yield descriptor
        self._waiting[name] = path

    @contextlib.contextmanager
    def create_path(self, name: str) -> Iterator[Path]:
        """The same for code that opens its file itself: yields a path that ends in `name`.

        Raises:
            OSError: as for `create`, or the file does not exist at the end.
        """
        with self._errors_name(name):
            mode = _mode_of(self.folder / name)
            path = self.temporary_path() / name
            os.mkdir(path.parent)  # noqa: PTH102
        yield path
        with _finished(os.open(path, os.O_RDONLY | os.O_CLOEXEC), mode):
            pass
        self._waiting[name] = path

    def path_of(self, name: str) -> Path:
        """The path of a created file before it gets its name."""
        return self._waiting[name]

    def adopt(self, name: str, path: Path, nbytes: int) -> None:
        """Takes over a file that another process created in its hidden folder in the same folder.

        The other process keeps its hidden folder until this one has published.

        Args:
            name: the name that the file will get.
            path: its path in the hidden folder.
            nbytes: its size.

        Raises:
            OSError: it does not exist, as on a device that only the other process has, or it has
                another size.
        """
        with self._errors_name(name):
            found = os.stat(path).st_size  # noqa: PTH116
        if found != nbytes:
            raise OSError(
                errno.EIO,
                f"{self.operation}: {path} has {found} bytes, expected the {nbytes} that "
                "another process wrote. Next: check that all processes share one filesystem",
            )
        self._waiting[name] = path

    def temporary_path(self) -> Path:
        """An unused path in the hidden folder.

        Raises:
            OSError: nothing can be created in the folder.
        """
        if self._staging is None:
            self._staging = self._stack.enter_context(staging_folder(self.folder))
        return self._staging.files / f"{next(self._numbers)}.tmp"

    def keep(self) -> Path | None:
        """Keeps the hidden folder permanently, and returns its path."""
        return self._staging.keep() if self._staging is not None else None

    @contextlib.contextmanager
    def _errors_name(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.operation}: cannot create {self.folder / name}: "
                f"{error.strerror}. Next: check that the folder exists, and that it and the file "
                "can be written.",
            ) from error

    def write(self, name: str, data: bytes) -> None:
        """Creates a file with these bytes.

        Raises:
            OSError: as for `create`, or the system refused to write.
        """
        with self.create(name) as descriptor:
            write_bytes(descriptor, data, 0, self.folder / name)

    def publish(self, order: Callable[[Replacement], None] | None = None) -> None:
        """Gives the files their names.

        Two publications in one folder wait for each other. If this raises, the folder has the same
        files as before. An interrupt is raised after everything is done.

        Args:
            order: calls the steps of the `Replacement` that it gets, in some order; by default,
                every file is put in its place, in the order in which they were created.

        Raises:
            OSError: files in the folder cannot be renamed or removed.
        """

        def publish() -> None:
            # Release the lock first, because removing replaced files may take long.
            with self._stack, locked(self.folder) as folder:
                replacement = Replacement(self, folder, self._waiting)
                with replacement:
                    (order or Replacement.place_all)(replacement)
                    replacement.sync()

        uninterrupted(publish)


class Replacement:
    """Steps that give new files their names, each of which can be undone.

    As a context manager, it undoes all steps in reverse order if an exception ends it: files that a
    step replaces or removes keep a temporary name until then. Each step is a rename or a removal,
    so after a kill, the folder has the result of the steps so far. On a filesystem without hard
    links, replaced files cannot be put back; the steps before an error then stay.
    """

    def __init__(self, publication: Publication, folder: int, waiting: dict[str, Path]) -> None:
        self.folder = publication.folder
        self._publication = publication
        self._descriptor = folder
        self._waiting = waiting
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Replacement:
        self._undo.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._undo.pop_all()
            return
        try:
            self._undo.__exit__(kind, error, traceback)
        except OSError as failure:
            kept = self._publication.keep()
            raise OSError(
                failure.errno,
                f"{self._publication.operation}: files of {self.folder} cannot be put "
                f"back ({failure.strerror}) after another error ({error}). Next: look for their "
                f"earlier contents in {kept}.",
            ) from error

    def place_all(self) -> None:
        """Puts every file in its place that is not there yet; the last one after the others."""
        names = list(self._waiting)
        for name in names[:-1]:
            self.place(name)
        self.sync()
        for name in names[-1:]:
            self.place(name)

    def place(self, name: str) -> None:
        """Gives a file its name, and replaces the file that has it."""
        path = self.folder / name
        self._set_aside(path, replaced=True)
        os.replace(self._waiting[name], path)  # noqa: PTH105  (tests let system calls fail)
        del self._waiting[name]

    def place_also(self, name: str, other: str) -> bool:
        """Gives a file a second name; returns whether the filesystem has hard links."""
        path = self.folder / other
        self._undo.callback(_remove, [path])
        try:
            os.link(self._waiting[name], path, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        return True

    def rename(self, name: str, other: str) -> None:
        """Changes the name that a file will get."""
        self._waiting[other] = self._waiting.pop(name)

    def write(self, name: str, data: bytes) -> None:
        """Creates one more small file, which is not in its place yet."""
        self._publication.write(name, data)

    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""
        path = self.folder / name
        if os.path.lexists(path):
            self._set_aside(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108

    def sync(self) -> None:
        """Syncs all steps so far to the device."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise

    def _set_aside(self, path: Path, *, replaced: bool = False) -> None:
        """Keeps a file that is about to be replaced or removed; undoing puts it back."""
        if not os.path.lexists(path):
            self._undo.callback(_remove, [path])
            return
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(
                errno.EISDIR,
                f"{self._publication.operation}: {path} is a folder, but a file of this "
                "name must be written. Next: remove it, or save elsewhere",
            )
        kept = self._publication.temporary_path()
        self._undo.callback(_put_back, kept, path)
        try:
            # A second name, so that the first one is never missing while it is replaced.
            os.link(path, kept, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if replaced:
                # A kill must not meet the name missing, so this step cannot be undone, nor can
                # those before it, on which it stands.
                self._undo.pop_all()
            else:
                os.replace(path, kept)  # noqa: PTH105


@contextlib.contextmanager
def written_aside(path: Path, operation: str) -> Iterator[Path]:
    """A path of the same name, whose file replaces `path` at the end.

    If an exception ends it, `path` is unchanged. A symbolic link stays a symbolic link.

    Args:
        path: the path of a file, which need not exist.
        operation: the name of the operation in errors.

    Raises:
        OSError: the folder or the existing file cannot be written to.
    """
    final = path.resolve()
    with Publication(final.parent, operation) as publication:
        with publication.create_path(final.name) as aside:
            yield aside
        publication.publish()


@contextlib.contextmanager
def _finished(descriptor: int, mode: int | None) -> Iterator[None]:
    """Gives an open file its permissions, syncs it to the device, and closes it."""
    try:
        if mode is not None:
            with contextlib.suppress(OSError):  # some filesystems know no modes
                os.fchmod(descriptor, mode)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int | None:
    """The permissions of the existing file of this name; None if there is none.

    Raises:
        PermissionError: it must not be written.
    """
    try:
        status = path.stat()
        # A file that another save removes in between answers as one that is read-only.
        while not os.access(path, os.W_OK):
            asked, status = status, path.stat()
            if os.path.samestat(asked, status):
                raise PermissionError(errno.EACCES, "a file of this name is read-only")
    except FileNotFoundError:
        return None  # also a link that leads nowhere
    return stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else None


def _put_back(kept: Path, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was never set aside
        os.replace(kept, path)  # noqa: PTH105
        # Where both are names of one file, replacing does nothing.
        kept.unlink(missing_ok=True)


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
