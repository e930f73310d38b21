"""GGUF files byte by byte, well formed or not."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return u64(len(encoded)) + encoded


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key and a value of the format's type `kind`."""
    return text(key) + u32(kind) + value


def array(key: str, kind: int, count: int, values: bytes) -> bytes:
    return pair(key, 9, u32(kind) + u64(count) + values)


def tensor(
    name: str | bytes, sizes: Sequence[int], kind: int, offset: int, dimensions: int | None = None
) -> bytes:
    """The description of a tensor of ggml's type `kind`, its innermost size first."""
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + u32(count) + b"".join(map(u64, sizes)) + u32(kind) + u64(offset)


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file; `counts` are those of tensors and of keys that it claims to have."""
    claimed = counts or (len(tensors), len(pairs))
    header = b"GGUF" + u32(version) + u64(claimed[0]) + u64(claimed[1])
    header += b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data
