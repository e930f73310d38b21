"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*")
_UNITS = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str) -> int | None:
    """The number of bytes in text like "5GB", "0.5 TB" or "500MiB"; None if it is not such text."""
    found = _TEXT.fullmatch(text.upper())
    return int(Fraction(found[1]) * _UNITS[found[2]]) if found else None
