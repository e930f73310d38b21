"""`dormant.load` into a lazy model, as it is called by default."""

from __future__ import annotations

from typing import Any, Literal

import torch

import dormant
from benchmarks.llama import llama
from benchmarks.load.stored import Stored, model_name

NAME = "dormant"
EXACT = True


def build(stored: Stored, dtype: torch.dtype) -> Any:
    return load(stored, dtype, "auto")


def load(stored: Stored, dtype: torch.dtype, mmap: Literal["auto", "never"]) -> Any:
    """The model; `mmap` as `dormant.load` takes it."""
    with dormant.lazy_init(dtype=dtype):
        model = llama(stored.size)
    dormant.load(
        model,
        stored.folder,
        missing="error",
        rename=model_name if stored.form == "4 parts" else None,
        mmap=mmap,
        progress=False,
    )
    return model
