"""The storage behind a URL: HTTP, the Hugging Face Hub, or a filesystem of fsspec."""

from __future__ import annotations

import atexit
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dormant._extension import _C
from dormant.checkpoint.http_ranges import HttpRanges, abort_all
from dormant.checkpoint.ranges import FailedError, RangeFile, Ranges, give_up
from dormant.checkpoint.url import Url

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

# Attributes of a file that change when the file changes.
_IDENTITY = (
    "size",
    "ETag",
    "etag",
    "e_tag",
    "md5Hash",
    "content_md5",
    "generation",
    "version_id",
    "VersionId",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "modified",
)


_AT_A_TIME = 16


class FsspecRanges:
    """A file of a filesystem of fsspec; any thread."""

    def __init__(self, filesystem: AbstractFileSystem, path: str) -> None:
        self._filesystem = filesystem
        self._process = os.getpid()
        self._path = path
        self._identity: dict[str, Any] = {}

    def open(self, count: int) -> tuple[int, bytes]:
        """The size, and the first `count` bytes or all of them."""
        self._identity = self._look()
        size = self._identity["size"]
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise FailedError(ValueError, f"has the size {size!r}, expected a number of bytes")
        return size, self._read(0, min(count, size)) if size else b""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view`."""
        view[:] = self._read(offset, offset + len(view))

    def check(self) -> None:
        """Raises if the attributes of the file are not those from when it was opened."""
        now = self._look()
        for key, value in self._identity.items():
            if now.get(key) != value:
                raise FailedError(
                    ValueError,
                    f"has {key} {now.get(key)!r}, expected {value!r} as when it was opened",
                    changed=True,
                )

    def _read(self, begin: int, end: int) -> bytes:
        data: bytes = self._usable().cat_file(self._path, start=begin, end=end)
        if len(data) != end - begin:
            self.check()  # a file that shrank is not worth another attempt
            raise EOFError(f"got {len(data)} bytes, expected {end - begin}")
        return data

    def _look(self) -> dict[str, Any]:
        filesystem = self._usable()
        filesystem.invalidate_cache(self._path)
        about = filesystem.info(self._path)
        if about.get("type") == "directory":
            raise FailedError(IsADirectoryError, "is a folder, expected a file")
        return {key: about.get(key) for key in _IDENTITY if key == "size" or key in about}

    def _usable(self) -> AbstractFileSystem:
        """The filesystem; in a forked process, a new one like it."""
        if self._process != os.getpid():
            old = self._filesystem
            self._filesystem = type(old)(*old.storage_args, **old.storage_options)
            self._process = os.getpid()
        return self._filesystem


def open_url(url: Url) -> RangeFile:
    """Opens the file at a URL with one or two requests.

    Raises:
        ValueError: the URL is not valid; or the server sends only whole files, or contradicts
            itself.
        ImportError: a library that the URL needs is not installed.
        OSError: it cannot be read; has its errno.
    """
    return RangeFile(_ranges(url), str(url))


def open_urls(urls: Sequence[Url]) -> list[RangeFile]:
    """Opens files at the same time, in order.

    Raises:
        ValueError, ImportError, OSError: as by `open_url`, for the first that cannot be opened.
    """
    if len(urls) < 2:
        return [open_url(url) for url in urls]
    pool = ThreadPoolExecutor(min(len(urls), _AT_A_TIME))
    try:
        return list(pool.map(open_url, urls))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def names_at(url: Url) -> list[str] | None:
    """The names of the files in the folder at a URL, sorted; None if it cannot be listed.

    Raises:
        ImportError: a library that the URL needs is not installed.
        OSError: it cannot be read; has its errno.
    """
    if url.is_http:
        return None
    filesystem, path = _filesystem(url)
    try:
        listed = filesystem.ls(path, detail=True)
    except NotImplementedError:
        return None
    except FileNotFoundError:
        raise _absent(url) from None
    except Exception as error:
        raise _unreadable(url, error) from error
    return sorted(
        item["name"].rstrip("/").rpartition("/")[2] for item in listed if item["type"] == "file"
    )


def is_folder(url: Url) -> bool:
    """Whether there is a folder at a URL; for HTTP, only its name shows this.

    Raises:
        ImportError: a library that the URL needs is not installed.
        OSError: no such file or folder, or it cannot be read; has its errno.
    """
    if url.is_http:
        return "." not in url.name
    filesystem, path = _filesystem(url)
    try:
        return bool(filesystem.info(path)["type"] == "directory")
    except FileNotFoundError:
        raise _absent(url) from None
    except Exception as error:
        raise _unreadable(url, error) from error


def exists(url: Url) -> bool:
    """Whether there is a file at a URL that can be accessed.

    Raises:
        ImportError: a library that the URL needs is not installed.
        OSError, ValueError: there is no response, or not the expected one.
    """
    try:
        open_url(url)
    except (FileNotFoundError, PermissionError):  # some stores refuse access to missing files
        return False
    return True


def read_small(url: Url, most: int) -> bytes | None:
    """A file of at most so many bytes; None if there is none.

    Raises:
        OSError: it cannot be requested.
    """
    if not exists(url):
        return None
    file = open_url(url).file()
    return file.read(0, file.size) if file.size <= most else None


def _ranges(url: Url) -> Ranges:
    if url.is_http:
        unknown = sorted(set(url.options) - {"headers"})
        if unknown:
            raise ValueError(
                f"open_checkpoint: storage_options {unknown} are not supported for {url.scheme}, "
                "expected only 'headers'."
            )
        return HttpRanges(url.full, url.options.get("headers"))
    filesystem, path = _filesystem(url)
    if url.scheme == "hf":
        return _on_hub(filesystem, path)
    return FsspecRanges(filesystem, path)


def _on_hub(filesystem: Any, path: str) -> HttpRanges:
    """A file of the Hub by HTTP, where every response has its ETag."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    token = getattr(filesystem, "token", None)
    return HttpRanges(filesystem.url(path), build_hf_headers(token=token))


def _filesystem(url: Url) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        filesystem, path = url_to_fs(url.full, **url.options)
    except ImportError as error:
        raise ImportError(f"open_checkpoint: {url}: {error}") from error
    except ValueError as error:
        raise ValueError(f"open_checkpoint: {url}: {error}") from error
    return filesystem, path


def _absent(url: Url) -> FileNotFoundError:
    return FileNotFoundError(
        errno.ENOENT,
        f"open_checkpoint: no such file or folder: {url}",
    )


def _unreadable(url: Url, error: Exception) -> OSError:
    number = getattr(error, "errno", None)
    return OSError(
        number if isinstance(number, int) and number > 0 else errno.EIO,
        f"open_checkpoint: cannot access {url}: {type(error).__name__}: {error}",
    )


def _at_exit() -> None:
    """Makes sure that no thread calls an interpreter that has ended."""
    give_up()
    abort_all()
    _C.finish_background()


atexit.register(_at_exit)
