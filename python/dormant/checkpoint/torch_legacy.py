"""The older layout of torch.save: pickles, then the storages one after the other.

`_legacy_save` in torch/serialization.py writes a magic number, a protocol version, facts about the
system, the object and the list of storage keys, each as a pickle; then for each key the number of
its elements (8 bytes) and its bytes.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from dormant.checkpoint.torch_pickle import (
    Pickle,
    StorageRequest,
    Unpickled,
    describe,
    plain,
    read_pickle,
    unpickle,
)

MAGIC = 0x1950A86A20F9469CFC6C
# The pickle of the magic number, which the file begins with.
PREFIX = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


@dataclass(frozen=True)
class LegacyFile:
    """What such a file holds.

    Attributes:
        unpickled: the object.
        offsets: where the bytes of each storage begin.
    """

    unpickled: Unpickled
    offsets: dict[str, int]


def read_legacy(stream: BinaryIO, size: int, path: str) -> LegacyFile:
    """Reads everything but the tensors' bytes.

    Args:
        stream: the file, at its beginning.
        size: its bytes.
        path: names it in messages.

    Raises:
        ValueError: a part is missing, contradicts another, or asks for anything but tensors.
        NotImplementedError: it has tensors that are no views of bytes in the file.
    """
    _expect(plain(_next(stream, path, "magic number")), MAGIC, "magic number", path)
    _expect(plain(_next(stream, path, "protocol version")), _PROTOCOL, "protocol version", path)
    system = plain(_next(stream, path, "system information"))
    little = dict.get(system, "little_endian") if isinstance(system, dict) else None
    if little is not True:
        raise ValueError(
            f"open_checkpoint: {path} says of the system that wrote it 'little_endian': "
            f"{describe(little)}, expected True. Load and save it on a machine of that kind."
        )

    def fits(request: StorageRequest) -> None:
        if request.nbytes > size:
            raise ValueError(
                f"storage {request.key!r} has {request.nbytes} bytes, the whole file has {size}"
            )

    unpickled = unpickle(_next(stream, path, "object"), fits)
    keys = plain(_next(stream, path, "list of storages"))
    offsets = _offsets(stream, size, path, keys, unpickled.requests)
    return LegacyFile(unpickled, offsets)


def _next(stream: BinaryIO, path: str, part: str) -> Pickle:
    return read_pickle(stream, f"the {part} of {path} at byte {stream.tell()}")


def _expect(got: object, expected: int, part: str, path: str) -> None:
    if type(got) is not int or got != expected:
        raise ValueError(
            f"open_checkpoint: {path} has {part} {describe(got)}, expected {expected}. torch.save "
            "did not write this file, or it is damaged."
        )


def _offsets(
    stream: BinaryIO, size: int, path: str, keys: Any, requests: dict[str, StorageRequest]
) -> dict[str, int]:
    """Steps over the storages, which lie in the order of `keys` without gaps."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(
            f"open_checkpoint: {path}: the list of storages is a {type(keys).__name__}, expected "
            "a list of text. The file is damaged."
        )
    if len(set(keys)) != len(keys) or set(keys) != set(requests):
        raise ValueError(
            f"open_checkpoint: {path} lists {len(keys)} storages, its tensors are over "
            f"{len(requests)}; in one only: {sorted(set(keys) ^ set(requests))[:5]}, expected each "
            "once. The file is damaged."
        )
    position = stream.tell()
    offsets = {}
    for key in keys:
        request = requests[key]
        stream.seek(position)
        head = stream.read(_COUNT.size)
        if len(head) != _COUNT.size:
            raise ValueError(
                f"open_checkpoint: {path} ends at byte {size}, expected storage {key!r} at byte "
                f"{position}. It is cut short; get it again."
            )
        (numel,) = _COUNT.unpack(head)
        if numel != request.numel:
            raise ValueError(
                f"open_checkpoint: {path}: storage {key!r} at byte {position} has {numel} "
                f"elements, its tensors expect {request.numel}. The file is damaged."
            )
        offsets[key] = position + _COUNT.size
        position = offsets[key] + request.nbytes
        if position > size:
            raise ValueError(
                f"open_checkpoint: {path} ends at byte {size}, expected storage {key!r} to end at "
                f"byte {position}. It is cut short; get it again."
            )
    if position != size:
        raise ValueError(
            f"open_checkpoint: {path} has {size} bytes, expected its last storage to end there, "
            f"got an end at byte {position}. Something was appended, or the file is damaged."
        )
    stream.seek(0, os.SEEK_SET)
    return offsets
