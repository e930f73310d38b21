"""An open file of the core as a Python stream."""

from __future__ import annotations

import io
from typing import cast

from dormant._extension import _C


class _FileStream(io.RawIOBase):
    def __init__(self, file: _C.File) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError(22, f"dormant: negative position {base + offset} in {self._file.path}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        out = memoryview(cast(bytearray, buffer)).cast("B")
        count = max(0, min(len(out), self._file.size - self._position))
        out[:count] = self._file.read(self._position, count)
        self._position += count
        return count


def open_stream(file: _C.File) -> io.BufferedReader:
    """A stream over `file` through its own descriptor, even if its path was replaced since."""
    return io.BufferedReader(_FileStream(file))
