"""`dormant.quantize` of a lazy model, then `dormant.load`."""

from __future__ import annotations

from typing import Any, Literal

import torch

import dormant
from benchmarks.llama import llama
from benchmarks.load.stored import Stored
from benchmarks.quantize_load.schemes import for_dormant

NAME = "dormant"
EXACT = True


def build(stored: Stored, scheme: str) -> Any:
    return load(stored, scheme, "auto")


def load(stored: Stored, scheme: str, mmap: Literal["auto", "never"]) -> Any:
    """The model; `mmap` as `dormant.load` takes it."""
    with dormant.lazy_init(dtype=torch.bfloat16):
        model = llama(stored.size)
    dormant.quantize(model, for_dormant(scheme))
    dormant.load(model, stored.folder, missing="error", mmap=mmap, progress=False)
    return model
