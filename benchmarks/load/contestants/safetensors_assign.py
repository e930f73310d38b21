"""safetensors' load_file, cast by `to`, assigned to a model on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.load.stored import Stored, empty_model

NAME = "safetensors load_file + assign"
EXACT = True


def build(stored: Stored, dtype: torch.dtype) -> Any:
    if stored.form != "safetensors":
        raise NotImplementedError("it reads safetensors only")
    model = empty_model(stored.size)
    for path in stored.files():
        state = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        model.load_state_dict(state, assign=True, strict=False)
    return model
