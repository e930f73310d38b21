"""Remote files, read in ranges: requests are retried and checked, and each byte is requested once.

`Ranges` makes one attempt. `RangeFile`, which the core reads from, retries, keeps the data that was
read while the file was opened, and names the tensor and the file in errors.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import Protocol

from dormant._extension import _C

# Bytes of one request while a file is opened; most headers are shorter.
_BLOCK = 1 << 16
# The most bytes of one such request, if a header is read piece by piece, and of all of them.
_LONGEST_RUN = 1 << 20
_MOST_KEPT = 1 << 26
# How many of these stay after opening: bytes of tensors that need not be requested again.
_MOST_STAYING = 1 << 18
# The longest header that is read at once with the first bytes (csrc/checkpoint/safetensors.h).
_LONGEST_HEADER = 100_000_000

_ATTEMPTS = 6
_FIRST_DELAY = 0.1  # seconds; doubled each time
_LONGEST_DELAY = 10.0
_MOST_NAMED = 3

_closing = threading.Event()


class TransientError(Exception):
    """An attempt that failed temporarily and should be retried.

    Attributes:
        seconds: how long to wait, if the server says so.
        got: bytes that it filled; the next attempt requests the rest.
    """

    def __init__(self, what: str, seconds: float | None = None, got: int = 0) -> None:
        super().__init__(what)
        self.seconds = seconds
        self.got = got


class FailedError(Exception):
    """An attempt that failed permanently, as an error of `kind`; `changed` if the file changed."""

    def __init__(self, kind: type[Exception], what: str, *, changed: bool = False) -> None:
        super().__init__(what)
        self.kind = kind
        self.changed = changed


class Ranges(Protocol):
    """Requests bytes of one file, from any thread. Each call is one attempt.

    Attempts raise TransientError or FailedError with the end of a sentence about the file, such as
    "answers 404 Not Found". OSError and other exceptions of libraries keep their meaning.
    """

    def open(self, count: int) -> tuple[int, bytes]:
        """The size, and the first `count` bytes or all of them. Later calls are for that file."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view`."""

    def check(self) -> None:
        """Raises FailedError if it is no longer that file."""


class RangeFile:
    """A file read through `Ranges`, as `_C.File.over` wants it.

    Opening it takes one request, and headers are read from its result. Afterwards, `opened` says
    which bytes belong to which tensor.
    """

    def __init__(self, ranges: Ranges, name: str, *, attempts: int = _ATTEMPTS) -> None:
        self._ranges = ranges
        self._attempts = attempts
        self.name = name
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0
        self._run = (0, 0)  # where the last run of blocks ended, and how many bytes it had
        self._opening = True
        self._begins: list[int] = []
        self._spans: list[tuple[int, int, str]] = []
        self.size = 0
        head = b""

        def begin() -> None:
            nonlocal head
            self.size, head = ranges.open(_BLOCK)

        self._try(begin, "opening")
        if len(head) != min(_BLOCK, self.size):
            raise self._error(
                ValueError, "opening", f"gave {len(head)} bytes of the first {_BLOCK}", 1
            )
        self._keep(0, head)
        self._run = (len(head), len(head))
        # A header of safetensors says how long it is.
        length = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and _BLOCK < 8 + length <= min(self.size, _LONGEST_HEADER):
            rest = bytearray(8 + length - _BLOCK)
            self._fetch(_BLOCK, memoryview(rest))
            self._keep(_BLOCK, bytes(rest))

    def file(self) -> _C.File:
        """The file as parsers read it."""
        return _C.File.over(self, self.name, self.size)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view` from the kept data, and the rest by requests."""
        end = offset + len(view)
        if self._opening and len(view) <= _BLOCK:
            self._read_blocks(offset, end)
        place = offset
        for begin in sorted(self._kept):
            kept = self._kept[begin]
            first, last = max(begin, place), min(begin + len(kept), end)
            if first >= last:
                continue
            if first > place:
                self._fetch(place, view[place - offset : first - offset])
            view[first - offset : last - offset] = kept[first - begin : last - begin]
            place = last
        if place < end:
            self._fetch(place, view[place - offset :])

    def check(self) -> None:
        """Raises ValueError if the file is no longer the one that was opened."""
        self._try(self._ranges.check, "checking")

    def opened(self, spans: Iterable[tuple[int, int, str]]) -> None:
        """Says that the file was parsed, with the begin, end and name of each tensor."""
        self._opening = False
        self._spans = sorted(spans)
        self._begins = [begin for begin, _, _ in self._spans]
        kept, self._kept = self._kept, {}
        self._kept_bytes = 0
        for begin, data in kept.items():
            if self._kept_bytes + len(data) <= _MOST_STAYING and self._names(begin, len(data)):
                self._keep(begin, data)

    def _keep(self, begin: int, data: bytes) -> None:
        if data:
            self._kept[begin] = data
            self._kept_bytes += len(data)

    def _read_blocks(self, offset: int, end: int) -> None:
        """Keeps the bytes in [offset, end) and some after them, more if much is read."""
        while offset < end and self._kept_bytes < _MOST_KEPT:
            found = next(
                (b + len(kept) for b, kept in self._kept.items() if b <= offset < b + len(kept)),
                None,
            )
            if found is not None:
                offset = found
                continue
            last_end, last_size = self._run
            begin = offset if offset == last_end else offset // _BLOCK * _BLOCK
            size = min(2 * last_size, _LONGEST_RUN) if offset == last_end else _BLOCK
            size = max(size, _BLOCK)
            # Do not read a byte twice: read up to the kept data, and from its end on.
            begin = max([begin, *(b + len(k) for b, k in self._kept.items() if b <= offset)])
            limit = min([self.size, *(b for b in self._kept if b > offset)])
            data = bytearray(min(begin + size, limit) - begin)
            self._fetch(begin, memoryview(data))
            self._keep(begin, bytes(data))
            self._run = (begin + len(data), len(data))

    def _fetch(self, offset: int, view: memoryview) -> None:
        got = 0

        def attempt() -> None:
            nonlocal got
            try:
                self._ranges.read_into(offset + got, view[got:])
            except TransientError as error:
                got += error.got
                raise

        self._try(
            attempt,
            f"reading bytes {offset} to {offset + len(view)} of",
            self._names(offset, len(view)),
        )

    def _names(self, offset: int, count: int) -> str:
        """The tensors in a range, for a message; "" if there are none."""
        first = bisect_left(self._begins, offset)
        if first > 0 and self._spans[first - 1][1] > offset:
            first -= 1
        last = bisect_left(self._begins, offset + count)
        names = [repr(name) for _, _, name in self._spans[first : min(last, first + _MOST_NAMED)]]
        if not names:
            return ""
        more = f" and {last - first - len(names)} more" if last - first > len(names) else ""
        return f"tensor{'s' if last - first > 1 else ''} {', '.join(names)}{more}"

    def _try(self, attempt: _Attempt, doing: str, tensors: str = "") -> None:
        delay = _FIRST_DELAY
        for number in range(1, self._attempts + 1):
            seconds = None
            if _closing.is_set():
                raise self._error(
                    OSError, doing, "was not requested, because the process ends", 1, tensors
                )
            try:
                return attempt()
            except FailedError as error:
                raise self._error(error.kind, doing, str(error), number, tensors, error) from error
            except TransientError as error:
                cause: Exception = error
                seconds = error.seconds
            except Exception as error:
                if not _is_transient(error):
                    kind = type(error) if type(error) in _KEPT else OSError
                    text = f"failed: {_text(error)}"
                    raise self._error(kind, doing, text, number, tensors, error) from error
                cause = error
            if number == self._attempts or _closing.is_set():
                break
            # Not all at the same time, if many threads saw the same failure.
            wait = min(delay if seconds is None else seconds, _LONGEST_DELAY)
            _closing.wait(wait * random.uniform(0.5, 1.0) if seconds is None else wait)
            delay *= 2
        text = str(cause) if isinstance(cause, TransientError) else f"failed: {_text(cause)}"
        raise self._error(OSError, doing, text, number, tensors, cause) from cause

    def _error(
        self,
        kind: type[Exception],
        doing: str,
        what: str,
        attempts: int,
        tensors: str = "",
        cause: Exception | None = None,
    ) -> Exception:
        about = f" ({tensors})" if tensors else ""
        tried = f" It was tried {attempts} times." if attempts > 1 else ""
        text = f"dormant: {doing} {self.name}{about}: it {what}.{tried}"
        if isinstance(cause, FailedError) and cause.changed:
            text += " Cause: the file was replaced later. Next: open the checkpoint again."
        if not issubclass(kind, OSError):
            return kind(text)
        return kind(_number_of(kind, cause), text)


class _Attempt(Protocol):
    def __call__(self) -> None: ...


_KEPT = (ValueError, NotImplementedError, MemoryError, FileNotFoundError, PermissionError)
_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ImportError,
    NotImplementedError,
    MemoryError,
    AssertionError,
)


def _is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: TransientError says so; connection errors may."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return not isinstance(error, _FINAL)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _number_of(kind: type[Exception], cause: Exception | None) -> int:
    if kind in _NUMBERS:
        return _NUMBERS[kind]
    number = getattr(cause, "errno", None)
    if isinstance(number, int) and number > 0:
        return number
    return errno.ETIMEDOUT if isinstance(cause, TimeoutError) else errno.EIO


class _UserRanges:
    """An object with `size` and `pread(offset, count)`."""

    def __init__(self, reader: object) -> None:
        self._reader = reader

    def open(self, count: int) -> tuple[int, bytes]:
        size = getattr(self._reader, "size", None)
        if callable(size):
            size = size()
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
            raise FailedError(
                ValueError, f"has the size {size!r}, expected the number of bytes of the file"
            )
        head = bytearray(min(count, size))
        if head:
            self.read_into(0, memoryview(head))
        return size, bytes(head)

    def read_into(self, offset: int, view: memoryview) -> None:
        data = self._reader.pread(offset, len(view))  # type: ignore[attr-defined]
        try:
            with memoryview(data).cast("B") as found:
                if len(found) != len(view):
                    raise FailedError(
                        ValueError,
                        f"gave {len(found)} bytes for pread({offset}, {len(view)}), expected "
                        f"{len(view)}",
                    )
                view[:] = found
        except TypeError:
            raise FailedError(
                TypeError,
                f"gave {type(data).__name__} for pread({offset}, {len(view)}), expected "
                f"{len(view)} bytes",
            ) from None

    def check(self) -> None:
        pass


def over_reader(reader: object) -> RangeFile:
    """A file over an object with `size` and `pread(offset, count)`.

    Raises:
        TypeError: it has no such method.
        ValueError: its size is not a number of bytes.
        OSError: it raises an error; has its errno.
    """
    if not callable(getattr(reader, "pread", None)) or not hasattr(reader, "size"):
        raise TypeError(
            "open_checkpoint: reader must have `size` and `pread(offset, count)`, got "
            f"{type(reader).__name__}."
        )
    name = getattr(reader, "name", None)
    # A custom reader knows itself whether to retry.
    return RangeFile(
        _UserRanges(reader), name if isinstance(name, str) and name else "reader", attempts=1
    )


def give_up() -> None:
    """Stops all further requests, for the end of the process."""
    _closing.set()


def _after_fork() -> None:
    # A thread may have held its lock.
    global _closing
    _closing = threading.Event()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
