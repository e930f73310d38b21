"""fastsafetensors, cast by `to`, assigned to a model on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.load.stored import Stored, empty_model

NAME = "fastsafetensors + assign"
EXACT = True


def build(stored: Stored, dtype: torch.dtype) -> Any:
    if stored.form != "safetensors":
        raise NotImplementedError("it reads safetensors only")
    try:
        from fastsafetensors import fastsafe_open
    except ImportError as missing:
        raise NotImplementedError("fastsafetensors is not installed") from missing
    model = empty_model(stored.size)
    for path in stored.files():
        # One file at a time: what it reads lives until its last tensor is gone.
        with fastsafe_open(filenames=[str(path)], nogds=True, device="cpu") as file:
            state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(state, assign=True, strict=False)
    return model
