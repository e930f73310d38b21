"""torch.load(mmap=True), parts joined by `cat`, cast by `to`, assigned to a model on meta."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.load.stored import Stored, divided_along, empty_model, model_name

NAME = "torch.load(mmap=True) + assign"
EXACT = True


def build(stored: Stored, dtype: torch.dtype) -> Any:
    if stored.form == "safetensors":
        raise NotImplementedError("it reads files of torch.save only")
    model = empty_model(stored.size)
    files = [torch.load(path, mmap=True, weights_only=True) for path in stored.files()]
    state = files[0] if len(files) == 1 else _joined(files, dtype)
    for name, tensor in state.items():
        state[name] = tensor.to(dtype)
    model.load_state_dict(state, assign=True)
    return model


def _joined(parts: list[dict[str, torch.Tensor]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {}
    for name, first in parts[0].items():
        dim = divided_along(name)
        whole = first if dim is None else torch.cat([part[name] for part in parts], dim)
        state[model_name(name)] = whole.to(dtype)  # here, so that only one is there twice
    return state
