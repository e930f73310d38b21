"""Safetensors files from raw bytes, so that a test can make them wrong in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def safetensors_bytes(
    header: str | bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None
) -> bytes:
    """A file with this header; `length` is the number written in front of it, if not the truth."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    count = len(header) if length is None else length
    return count.to_bytes(8, "little") + header + data


def write_safetensors(
    path: Path,
    header: str | bytes | dict[str, Any],
    data: bytes = b"",
    *,
    length: int | None = None,
) -> Path:
    """Writes `safetensors_bytes`."""
    path.write_bytes(safetensors_bytes(header, data, length=length))
    return path


def described(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """A tensor as a header describes it."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
