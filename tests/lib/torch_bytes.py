"""Files in the layouts of torch.save from raw bytes, so that tests can make each field wrong."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Storage:
    """What a pickle says about a storage; written as a persistent id."""

    key: object
    numel: object
    kind: Any = torch.FloatStorage
    fields: tuple[object, ...] = ()  # what follows in the older layout
    prefix: object = "storage"

    def persistent_id(self) -> tuple[object, ...]:
        return (self.prefix, self.kind, self.key, "cpu", self.numel, *self.fields)


@dataclass(frozen=True)
class Tensor:
    """A tensor as torch.save pickles it."""

    storage: object
    size: Sequence[int] = (3,)
    stride: Sequence[int] = (1,)
    offset: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (
            self.storage,
            self.offset,
            tuple(self.size),
            tuple(self.stride),
            False,
            OrderedDict(),
        )


@dataclass(frozen=True)
class Call:
    """A call that the pickle makes when it is loaded."""

    function: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments, self.state


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.persistent_id() if isinstance(obj, Storage) else None


def pickled(value: object) -> bytes:
    """The pickle of `value`, with `Storage`, `Tensor` and `Call` in it."""
    out = io.BytesIO()
    _Pickler(out, protocol=2).dump(value)
    return out.getvalue()


@dataclass
class Record:
    """A record of a zip file; what is not None stands in place of the true value."""

    name: str
    data: bytes
    header: dict[str, Any] = field(default_factory=dict)
    directory: dict[str, Any] = field(default_factory=dict)
    extra: bytes = b""


def zip_bytes(records: Sequence[Record], *, end: bool = True) -> bytes:
    """A zip file of stored records."""
    body, directory = bytearray(), bytearray()
    for record in records:
        true: dict[str, Any] = {
            "name": record.name.encode(),
            "flags": 0x800,
            "method": 0,
            "crc": zlib.crc32(record.data),
            "stored": len(record.data),
            "nbytes": len(record.data),
            "offset": len(body),
        }
        at = {**true, **record.header}
        body += struct.pack(
            "<4s5H3I2H",
            at.get("magic", b"PK\x03\x04"),
            *(0, at["flags"], at["method"], 0, 0),
            *(at["crc"], at["stored"], at["nbytes"], len(at["name"]), len(record.extra)),
        )
        body += at["name"] + record.extra + record.data
        at = {**true, **record.directory}
        directory += struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            *(0, 0, at["flags"], at["method"], 0, 0),
            *(at["crc"], at["stored"], at["nbytes"], len(at["name"])),
            *(0, 0, 0, 0, at.get("attributes", 0), at["offset"]),
        )
        directory += at["name"]
    count = len(records)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + (tail if end else b""))


def archive(value: object, storages: dict[str, bytes], **records: bytes) -> list[Record]:
    """The records of a zip file of torch.save."""
    return [
        Record("archive/data.pkl", pickled(value)),
        *(Record(f"archive/{name}", data) for name, data in records.items()),
        *(Record(f"archive/data/{key}", data) for key, data in storages.items()),
        Record("archive/version", b"3\n"),
    ]


def legacy_bytes(
    value: object,
    storages: Sequence[tuple[str, int, bytes]],
    *,
    magic: object = 0x1950A86A20F9469CFC6C,
    protocol: object = 1001,
    system: object = None,
    keys: object = None,
) -> bytes:
    """A file in the older layout; `storages` are (key, number of elements, bytes)."""
    system = {"protocol_version": 1001, "little_endian": True} if system is None else system
    keys = [key for key, _, _ in storages] if keys is None else keys
    head = [pickled(part) for part in (magic, protocol, system, value, keys)]
    body = [struct.pack("<q", numel) + data for _, numel, data in storages]
    return b"".join([*head, *body])
