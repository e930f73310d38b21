"""torch.distributed.checkpoint itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from benchmarks.distributed_checkpoint.stored import Stored, buffers_of, meta_model

NAME = "torch.distributed.checkpoint"
EXACT = True


def prepare(stored: Stored, action: str, out: str) -> Any:
    """For saving a model with memory that has the folder's values."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    return _loaded(stored) if action == "save" else None


def build(stored: Stored, action: str, out: str, prepared: Any) -> Any:
    """The model, or the path of what was written."""
    if action == "save":
        dcp.save(dict(prepared.state_dict()), checkpoint_id=out)
    elif action == "convert":
        dcp_to_torch_save(stored.folder, Path(out, "model.pt"))
    else:
        return _loaded(stored)
    return None


def _loaded(stored: Stored) -> torch.nn.Module:
    model = meta_model(stored.size).to_empty(device="cpu")
    buffers_of(model, stored.size)
    state = dict(model.state_dict())
    dcp.load(state, checkpoint_id=stored.folder)
    return model
