"""Dormant: a lazy model takes the folder; files are streamed from one format to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.distributed_checkpoint.stored import Stored
from benchmarks.llama import llama

NAME = "dormant"
EXACT = True


def prepare(stored: Stored, action: str, out: str) -> Any:
    """For saving a model with memory that has the folder's values."""
    return _loaded(stored) if action == "save" else None


def build(stored: Stored, action: str, out: str, prepared: Any) -> Any:
    """The model, or the path of what was written."""
    if action == "save":
        dormant.save(prepared, out, format="dcp", progress=False)
    elif action == "convert":
        checkpoint = dormant.open_checkpoint(stored.folder)
        dormant.save(dict(checkpoint), Path(out, "model.pt"), progress=False)
    else:
        return _loaded(stored)
    return None


def _loaded(stored: Stored) -> torch.nn.Module:
    with dormant.lazy_init(dtype=torch.bfloat16):
        model: torch.nn.Module = llama(stored.size)
    dormant.load(model, stored.folder, missing="error", progress=False)
    return model
