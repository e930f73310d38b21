"""`dormant.load` with mmap="never": everything is read at once, whatever the dtype."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.load.contestants import dormant_load
from benchmarks.load.stored import Stored

NAME = 'dormant, mmap="never"'
EXACT = True


def build(stored: Stored, dtype: torch.dtype) -> Any:
    return dormant_load.load(stored, dtype, "never")
