"""The zip layout of torch.save: records in a zip file, stored without compression.

A tensor's bytes are those of the record `NAME/data/KEY`; `NAME/data.pkl` is the pickle that refers
to them. Nothing in the file is believed before two places agree: the zip directory with the header
before a record, the record's size with what the pickle says of it.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"PK\x03\x04"

_LOCAL = struct.Struct("<4s5H3I2H")
_ZIP64 = 1  # tag of the extra field with 64-bit sizes
_ESCAPE = 0xFFFFFFFF
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_DIRECTORY = 0x10  # among MS-DOS attributes
_LONGEST_DIRECTORY = 1 << 28
_LONGEST_PICKLE = 1 << 30


@dataclass(frozen=True)
class Record:
    """Bytes of the file under a name."""

    name: str
    offset: int
    nbytes: int
    crc: int


class _Bounded:
    """A file that refuses to be read into memory whole, as a directory of absurd size would.

    Attributes:
        error: what the system said when it could not read, which zipfile takes for a damaged file.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self.error: OSError | None = None
        self.seek = stream.seek
        self.tell = stream.tell
        self.seekable = stream.seekable

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            count = max(0, self._size - self.tell())
        if count > _LONGEST_DIRECTORY:
            raise zipfile.BadZipFile(
                f"a directory of {count} bytes, expected at most {_LONGEST_DIRECTORY}"
            )
        try:
            return self._stream.read(count)
        except OSError as error:
            self.error = error
            raise


def read_directory(stream: BinaryIO, size: int, path: str) -> dict[str, Record]:
    """Lists the records of an archive of torch.save, without the archive's name before theirs.

    Args:
        stream: the file, open for reading.
        size: its bytes.
        path: names it in messages.

    Raises:
        ValueError: the directory is missing or contradicts the records, records overlap or are
            compressed or encrypted, a name is given twice or leads out of the archive, something
            lies before the archive, or it is no archive of torch.save.
        OSError: the system could not read it.
    """
    bounded = _Bounded(stream, size)
    try:
        archive = zipfile.ZipFile(bounded)
    # zipfile lets errors of struct, of text decoding and of arithmetic through.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as e:
        if bounded.error is not None:
            raise bounded.error from None
        raise ValueError(
            f"open_checkpoint: {path} begins as a zip file and has no readable directory in its "
            f"{size} bytes: {e}. It is cut short or damaged; get it again."
        ) from e
    end = archive.start_dir
    found: list[tuple[int, Record]] = []
    for info in archive.infolist():
        if not info.filename.endswith("/"):
            found.append((info.header_offset, _read_record(stream, info, end, path)))
    found.sort(key=lambda pair: (pair[0], pair[1].offset))
    if found and found[0][0] != 0:
        raise ValueError(
            f"open_checkpoint: {path} has {found[0][0]} bytes before the archive whose directory "
            "is at its end, expected none. Programs differ in which archive they take; do not use "
            "it."
        )
    for (_, before), (begin, record) in itertools.pairwise(found):
        if begin < before.offset + before.nbytes:
            raise ValueError(
                f"open_checkpoint: {path}: records {before.name!r} and {record.name!r} overlap: "
                f"the first ends at byte {before.offset + before.nbytes}, the second begins at "
                f"byte {begin}. The file is damaged or was made to deceive; do not use it."
            )
    return _without_prefix([record for _, record in found], path)


def _read_record(stream: BinaryIO, info: zipfile.ZipInfo, end: int, path: str) -> Record:
    """Checks one line of the directory against the header before the record's bytes."""
    name = info.orig_filename

    def refuse(got: str, expected: str) -> ValueError:
        return ValueError(
            f"open_checkpoint: {path}: record {name!r}, whose header is at byte "
            f"{info.header_offset}: got {got}, expected {expected}. The file is damaged, or "
            "torch.save did not write it."
        )

    if "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise refuse("a name that leads out of the archive", "one inside it")
    if info.compress_type != zipfile.ZIP_STORED:
        raise refuse(f"compression method {info.compress_type}", "stored bytes (method 0)")
    if info.flag_bits & _ENCRYPTED:
        raise refuse("encrypted bytes", "plain ones")
    if info.external_attr & _DIRECTORY:
        # torch.load takes it for a folder and leaves the tensor's memory as it happens to be.
        raise refuse(f"attributes {info.external_attr:#x} of a folder", "those of a file")
    if info.compress_size != info.file_size:
        raise refuse(f"{info.compress_size} stored bytes", f"its size, {info.file_size}")
    if not 0 <= info.header_offset <= end - _LOCAL.size:
        raise refuse("no room for a header there", f"one before the directory at byte {end}")
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL.size)
    if len(header) != _LOCAL.size or not header.startswith(MAGIC):
        raise refuse(f"{header[:4]!r}", f"a header, which begins with {MAGIC!r}")
    _, _, flags, method, _, _, crc, stored, nbytes, name_size, extra_size = _LOCAL.unpack(header)
    own_name = stream.read(name_size)
    extra = stream.read(extra_size)
    if own_name != name.encode("utf-8" if info.flag_bits & _UTF8 else "cp437"):
        raise refuse(f"the name {own_name!r} in the header", "the name in the directory")
    if method != info.compress_type:
        raise refuse(f"compression method {method} in the header", "stored bytes (method 0)")
    if not flags & _SIZES_FOLLOW:
        if _ESCAPE in (stored, nbytes):
            nbytes, stored = _wide_sizes(extra) or (nbytes, stored)
        if (stored, nbytes, crc) != (info.compress_size, info.file_size, info.CRC):
            raise refuse(
                f"{stored} bytes in the header, {nbytes} unpacked, CRC {crc:#010x}",
                f"{info.file_size} and CRC {info.CRC:#010x}, as in the directory",
            )
    offset = info.header_offset + _LOCAL.size + name_size + extra_size
    if offset + info.file_size > end:
        raise refuse(
            f"{info.file_size} bytes from byte {offset} on",
            f"an end before the directory at byte {end}",
        )
    return Record(name, offset, info.file_size, info.CRC)


def _wide_sizes(extra: bytes) -> tuple[int, int] | None:
    """(unpacked, stored) from the extra fields of a header; None where they do not tell."""
    position = 0
    while position + 4 <= len(extra):
        tag, count = struct.unpack_from("<HH", extra, position)
        if tag == _ZIP64 and count >= 16 and position + 20 <= len(extra):
            unpacked, stored = struct.unpack_from("<QQ", extra, position + 4)
            return unpacked, stored
        position += 4 + count
    return None


def _without_prefix(records: list[Record], path: str) -> dict[str, Record]:
    pickles = [record.name for record in records if record.name.count("/") == 1]
    pickles = [name for name in pickles if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(
            f"open_checkpoint: {path} is a zip file with {len(records)} records, {len(pickles)} of "
            "them named 'NAME/data.pkl', expected one, as torch.save writes. If it is an archive "
            "of checkpoints, unpack it."
        )
    prefix = pickles[0].removesuffix("data.pkl")
    named: dict[str, Record] = {}
    for record in records:
        if not record.name.startswith(prefix):
            raise ValueError(
                f"open_checkpoint: {path}: record {record.name!r} at byte {record.offset} does not "
                f"belong to the archive {prefix!r}. torch.save did not write this file."
            )
        name = record.name.removeprefix(prefix)
        if name in named:
            raise ValueError(
                f"open_checkpoint: {path} has two records {record.name!r}, at bytes "
                f"{named[name].offset} and {record.offset}. Programs differ in which they take; do "
                "not use it."
            )
        named[name] = record
    return named


def read_record(
    stream: BinaryIO, record: Record, path: str, *, most: int = _LONGEST_PICKLE
) -> bytes:
    """The bytes of a small record.

    Raises:
        ValueError: it has more than `most` bytes, or the file ends first.
    """
    if record.nbytes > most:
        raise ValueError(
            f"open_checkpoint: {path}: record {record.name!r} at byte {record.offset} has "
            f"{record.nbytes} bytes, expected at most {most}. It is no checkpoint."
        )
    stream.seek(record.offset)
    data = stream.read(record.nbytes)
    if len(data) != record.nbytes:
        raise ValueError(
            f"open_checkpoint: {path} ended while record {record.name!r} at byte {record.offset} "
            f"was read: got {len(data)} bytes, expected {record.nbytes}. Another process is "
            "changing it."
        )
    return data
