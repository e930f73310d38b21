"""`Checkpoint.verify`: reads every byte of the files and compares it with the checksums."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from dormant.checkpoint.entry import Checksum, Contents
from dormant.reporting.progress import Callback, following
from dormant.text.table import format_bytes, format_count

_BLOCK = 1 << 22
_PIECE = 1 << 26
_MOST_THREADS = 8


@dataclass(frozen=True)
class Verification:
    """What `Checkpoint.verify` read without finding an error.

    Attributes:
        files: paths of the files.
        tensors: tensors in them.
        nbytes: bytes read.
        records: runs of bytes whose checksum matches.
        unchecked_nbytes: bytes of runs without a checksum, which could be read.
        seconds: wall-clock time.
    """

    files: tuple[str, ...]
    tensors: int
    nbytes: int
    records: int
    unchecked_nbytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings, as for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Two lines."""
        rate = self.nbytes / self.seconds / 1e9 if self.seconds else 0.0
        return (
            f"{format_count(self.tensors, 'tensor')} in {format_count(len(self.files), 'file')}: "
            f"read {format_bytes(self.nbytes)} in {self.seconds:.3f} s ({rate:.1f} GB/s)\n"
            f"{format_count(self.records, 'matching checksum')}, "
            f"{format_bytes(self.unchecked_nbytes)} without checksum"
        )


def verify(contents: Sequence[Contents], progress: bool | Callback | None) -> Verification:
    """Reads all runs of all files.

    Raises:
        ValueError: checksums do not match (all of them are listed), or a file changed since it was
            opened.
        OSError: the system could not read a file; has its errno.
    """
    started = time.perf_counter()
    work = [
        (content, piece)
        for content in contents
        for checksum in content.checksums
        for piece in _pieces(checksum)
    ]
    total = sum(checksum.nbytes for _, checksum in work)
    for content in contents:
        content.file.check()
    damaged: list[str] = []
    with following(progress, "verify") as tell:
        done = 0
        stop = threading.Event()
        workers = min(os.cpu_count() or 1, _MOST_THREADS)
        with ThreadPoolExecutor(workers) as pool:
            results = [pool.submit(_read, content, checksum, stop) for content, checksum in work]
            try:
                for (_, checksum), result in zip(work, results, strict=True):
                    if (problem := result.result()) is not None:
                        damaged.append(problem)
                    done += checksum.nbytes
                    if tell is not None:
                        tell(done, total)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    for content in contents:
        content.file.check()
    if damaged:
        raise ValueError(
            f"verify: {len(damaged)} of {len(work)} records are damaged: {'; '.join(damaged)}. Get "
            "the files again."
        )
    unchecked = sum(checksum.nbytes for _, checksum in work if checksum.crc is None)
    return Verification(
        files=tuple(content.file.path for content in contents),
        tensors=sum(len(content.tensors) for content in contents),
        nbytes=total,
        records=sum(checksum.crc is not None for _, checksum in work),
        unchecked_nbytes=unchecked,
        seconds=time.perf_counter() - started,
    )


def _pieces(checksum: Checksum) -> list[Checksum]:
    """Runs for the threads to read; a CRC cannot be split."""
    if checksum.crc is not None:
        return [checksum]
    end = checksum.offset + checksum.nbytes
    return [
        Checksum(checksum.record, begin, min(_PIECE, end - begin), None)
        for begin in range(checksum.offset, end, _PIECE)
    ]


def _read(content: Contents, checksum: Checksum, stop: threading.Event) -> str | None:
    """What is wrong with a run; None if nothing is."""
    crc = 0
    end = checksum.offset + checksum.nbytes
    for begin in range(checksum.offset, end, _BLOCK):
        if stop.is_set():
            return None
        block = content.file.read(begin, min(_BLOCK, end - begin))
        if checksum.crc is not None:
            crc = zlib.crc32(block, crc)
    if checksum.crc is None or crc == checksum.crc:
        return None
    return (
        f"{checksum.record!r} at byte {checksum.offset} of {content.file.path} has CRC "
        f"{crc:#010x}, expected {checksum.crc:#010x}"
    )
