"""The layout of a zip file without compression: the positions of records, and their headers.

The format is that of PKWARE's APPNOTE.TXT, with its zip64 extension for more than 4 GiB. Sizes are
known before anything is written, so records can be written in any order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# PyTorch pads records so that torch.load(mmap=True) gives aligned tensors.
_ALIGNMENT = 64
_PADDING_TAG = 0x4246  # "FB", as PyTorch tags it
_ZIP64_TAG = 1
_MOST_16 = 0xFFFF
_MOST_32 = 0xFFFFFFFF
_FIRST_DAY = 0x21  # 1 January 1980, the first date there is
_VERSION, _VERSION_ZIP64 = 20, 45
_LOCAL_HEADER = struct.Struct("<IHHHHHIIIHH")
_ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")


@dataclass(frozen=True)
class Record:
    """A record of the file.

    Attributes:
        name: its name.
        nbytes: its size.
        header: offset of its header.
        offset: offset of its first byte.
    """

    name: bytes
    nbytes: int
    header: int
    offset: int


class ZipLayout:
    """Records one after the other, in the order in which they are added."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._end = 0

    @property
    def nbytes(self) -> int:
        """Size of the file, including everything that `headers` returns."""
        *_, (offset, directory) = self.headers([0] * len(self.records))
        return offset + len(directory)

    def add(self, name: str, nbytes: int) -> Record:
        """Adds a record after the others, at an aligned position."""
        encoded = name.encode("ascii")
        fixed = _LOCAL_HEADER.size + len(encoded) + len(_zip64_sizes(nbytes)) + 4
        header = self._end
        offset = -(-(header + fixed) // _ALIGNMENT) * _ALIGNMENT
        self.records.append(Record(encoded, nbytes, header, offset))
        self._end = offset + nbytes
        return self.records[-1]

    def headers(self, checksums: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Everything but the records, as (offset, bytes).

        Args:
            checksums: CRC-32 of each record, in order.
        """
        directory = bytearray()
        for record, checksum in zip(self.records, checksums, strict=True):
            yield record.header, _local_header(record, checksum)
            directory += _entry(record, checksum)
        yield self._end, bytes(directory) + self._end_of_directory(len(directory))

    def _end_of_directory(self, nbytes: int) -> bytes:
        count, start = len(self.records), self._end
        zip64 = b""
        if count >= _MOST_16 or start >= _MOST_32:
            zip64 = struct.pack(
                "<IQHHIIQQQQ", 0x06064B50, 44, _VERSION_ZIP64, _VERSION_ZIP64, 0, 0,
                count, count, nbytes, start,
            ) + struct.pack("<IIQI", 0x07064B50, 0, start + nbytes, 1)  # fmt: skip
        shown = min(count, _MOST_16)
        return zip64 + struct.pack(
            "<IHHHHIIH", 0x06054B50, 0, 0, shown, shown, nbytes, min(start, _MOST_32), 0
        )


def _zip64_sizes(nbytes: int) -> bytes:
    """The field with both sizes of a record, if its header has no room for them."""
    return struct.pack("<HHQQ", _ZIP64_TAG, 16, nbytes, nbytes) if nbytes >= _MOST_32 else b""


def _local_header(record: Record, checksum: int) -> bytes:
    sizes = _zip64_sizes(record.nbytes)
    before = record.header + _LOCAL_HEADER.size + len(record.name) + len(sizes) + 4
    padding = record.offset - before
    extra = sizes + struct.pack("<HH", _PADDING_TAG, padding) + b"Z" * padding
    shown = min(record.nbytes, _MOST_32)
    version = _VERSION_ZIP64 if sizes else _VERSION
    fields = _LOCAL_HEADER.pack(
        0x04034B50, version, 0, 0, 0, _FIRST_DAY, checksum, shown, shown,
        len(record.name), len(extra),
    )  # fmt: skip
    return fields + record.name + extra


def _entry(record: Record, checksum: int) -> bytes:
    large = record.nbytes >= _MOST_32
    values = [record.nbytes, record.nbytes] if large else []
    if record.header >= _MOST_32:
        values.append(record.header)
    extra = b""
    if values:
        extra = struct.pack(f"<HH{len(values)}Q", _ZIP64_TAG, 8 * len(values), *values)
    version = _VERSION_ZIP64 if values else _VERSION
    shown = min(record.nbytes, _MOST_32)
    fields = _ENTRY.pack(
        0x02014B50, version, version, 0, 0, 0, _FIRST_DAY, checksum, shown, shown,
        len(record.name), len(extra), 0, 0, 0, 0, min(record.header, _MOST_32),
    )  # fmt: skip
    return fields + record.name + extra
