"""As dormant, with mmap="never": what is not quantized is read at once, too."""

from __future__ import annotations

from typing import Any

from benchmarks.load.stored import Stored
from benchmarks.quantize_load.contestants import dormant_load

NAME = 'dormant, mmap="never"'
EXACT = True


def build(stored: Stored, scheme: str) -> Any:
    return dormant_load.load(stored, scheme, "never")
