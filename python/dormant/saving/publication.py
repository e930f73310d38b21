"""Files that appear in a folder whole and together, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from dormant.text.table import format_bytes

# What systems answer where a filesystem gives a file one name only, as FAT does.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
# And where it has nothing to do for a folder that shall reach the device.
_NO_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF}
_LONGEST_STEM = 48  # characters of a file's name that its temporary name repeats


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


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; those that are new go again with what ends it early.

    Raises:
        OSError: the system refused, or a file lies there.
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
    """New files of one folder, under temporary names until `publish` gives them their own.

    As a context manager it removes what was not published, whatever ends it. A killed process
    leaves at most temporary files, earlier contents among them: they begin with a dot and end in
    ".tmp".

    Args:
        folder: an existing folder.

    Attributes:
        folder: the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[str, Path] = {}

    def __enter__(self) -> Publication:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _remove(self._waiting.values())

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
            OSError: it cannot be created, the file that it is to replace is read-only, or the
                device reports that it did not take the bytes.
        """
        final = self.folder / name
        temporary = temporary_path(final)
        # Noted first: an interrupt may come as soon as the file is there.
        self._waiting[name] = temporary
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            mode = _mode_of(final)
            descriptor = os.open(temporary, flags, 0o666)
        except OSError as error:
            raise OSError(
                error.errno,
                f"dormant: save: cannot create {final}: {error.strerror}. Next: check that the "
                "folder exists, and that it and the file can be written.",
            ) from error
        try:
            if mode is not None:
                with contextlib.suppress(OSError):  # some filesystems know no modes
                    os.fchmod(descriptor, mode)
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Creates a file with these bytes.

        Raises:
            OSError: as `create` does, or the system refused to write.
        """
        with self.create(name) as descriptor:
            write_bytes(descriptor, data, 0, self.folder / name)

    def publish(self, order: Callable[[Replacement], None] | None = None) -> None:
        """Gives the files their names.

        Who publishes in one folder at the same time waits for the other. Where this raises, the
        folder has the files that it had. An interrupt is raised when all is done.

        Args:
            order: what happens in which order, by steps of the `Replacement` that it gets; by
                default every file is put in its place, in the order in which they were created.

        Raises:
            OSError: the folder does not let files be renamed or removed.
        """

        def publish() -> None:
            # From here on it is for this function to remove what is left.
            waiting, self._waiting = self._waiting, {}
            try:
                with _locked(self.folder) as folder:
                    replacement = Replacement(self.folder, folder, waiting)
                    with replacement:
                        (order or Replacement.place_all)(replacement)
                        replacement.sync()
            finally:
                _remove(waiting.values())

        _uninterrupted(publish)


class Replacement:
    """Steps that give new files their names, each of which can be undone.

    As a context manager it undoes all steps in reverse order where an exception ends it: what a
    step replaces or removes keeps a temporary name until then. Each step is a rename or a removal,
    so after a kill the folder is what the steps so far made of it. Where a filesystem has no
    second names, what is replaced cannot be put back; the steps before an error then stay.
    """

    def __init__(self, folder: Path, descriptor: int, waiting: dict[str, Path]) -> None:
        self.folder = folder
        self.waiting = waiting
        self._descriptor = descriptor
        self._aside: list[Path] = []
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
            _remove(self._aside)
        else:
            self._undo.__exit__(kind, error, traceback)

    def place_all(self) -> None:
        """Puts every file that is not in its place there, the last one when the others are safe."""
        names = list(self.waiting)
        for name in names[:-1]:
            self.place(name)
        self.sync()
        for name in names[-1:]:
            self.place(name)

    def place(self, name: str) -> None:
        """Gives a file its name, in place of what has it."""
        path = self.folder / name
        self._set_aside(path, replaced=True)
        os.replace(self.waiting[name], path)  # noqa: PTH105  (tests let system calls fail)
        del self.waiting[name]

    def place_also(self, name: str, other: str) -> bool:
        """Gives a file another name besides; whether the filesystem has such second names."""
        path = self.folder / other
        self._undo.callback(_remove, [path])
        try:
            os.link(self.waiting[name], path, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        return True

    def rename(self, name: str, other: str) -> None:
        """Says that a file shall have another name than the one it was created for."""
        self.waiting[other] = self.waiting.pop(name)

    def write(self, name: str, data: bytes) -> None:
        """Creates one more small file, not yet in its place."""
        with Publication(self.folder) as publication:
            publication.write(name, data)
            self.waiting.update(publication._waiting)
            publication._waiting = {}

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        path = self.folder / name
        if os.path.lexists(path):
            self._set_aside(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108

    def sync(self) -> None:
        """Has all steps so far on the device."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise

    def _set_aside(self, path: Path, *, replaced: bool = False) -> None:
        """Keeps what is about to be replaced or removed; undoing puts it back."""
        if not os.path.lexists(path):
            self._undo.callback(_remove, [path])
            return
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(
                errno.EISDIR,
                f"dormant: save: {path} is a folder, and a file of this name is to be written. "
                "Next: remove it, or save elsewhere",
            )
        kept = temporary_path(path)
        self._aside.append(kept)
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


def temporary_path(path: Path) -> Path:
    """A name beside `path` that nothing has, and that nobody takes for a checkpoint."""
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{secrets.token_hex(4)}.tmp")


def _mode_of(path: Path) -> int | None:
    """The permissions of the file that one of this name will replace; None where there is none.

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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """An open folder that no other `Publication` changes meanwhile, of any thread or process.

    The lock is the folder's own: no file is needed, and a killed process holds none. Where a
    filesystem has no such locks, as NFS for folders, nobody waits.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _uninterrupted(work: Callable[[], None]) -> None:
    """Runs `work` to its end; an interrupt meanwhile is raised afterwards.

    Python raises KeyboardInterrupt, and what handlers of signals raise, in its main thread only,
    between any two instructions, those that undo something too.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    failures: list[BaseException] = []
    may_begin, is_done = threading.Event(), threading.Event()
    interrupt: BaseException | None = None

    def run() -> None:
        may_begin.wait()
        try:
            if interrupt is None:
                work()
        except BaseException as error:  # raised again below
            failures.append(error)
        finally:
            is_done.set()

    # No Thread.join: one that is interrupted takes the thread for ended (bpo-45274).
    thread = threading.Thread(target=run, name="dormant-publish", daemon=True)
    try:
        thread.start()
        may_begin.set()
    except RuntimeError:  # there are no more threads, or the interpreter ends
        work()
        return
    except BaseException as error:
        interrupt = error
        if not may_begin.is_set():
            may_begin.set()
            raise
    while not is_done.is_set():
        try:
            is_done.wait()
        except BaseException as error:  # raised again below
            interrupt = error
    for failure in failures:
        raise failure
    if interrupt is not None:
        raise interrupt


def _put_back(kept: Path, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was never set aside
        os.replace(kept, path)  # noqa: PTH105
        # Where both are names of one file, replacing does nothing.
        kept.unlink(missing_ok=True)


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
