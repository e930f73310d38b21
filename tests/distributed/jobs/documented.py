"""The code of docs/distributed.md, run as it stands there."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

import dormant
from jobs.held import gathered_tensors, lazy_names
from jobs.models import SEED, TwoLayers


class Model(nn.Module):
    """What the document calls Model: layers in order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TwoLayers(64, 128) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def eager_model() -> nn.Module:
    """The model that every recipe has to end with."""
    torch.manual_seed(SEED)
    return Model()


def run(code: str, folder: str) -> dict[str, Any]:
    """Runs one recipe, which leaves `model`, in the folder with the files that it names."""
    os.chdir(folder)
    torch.manual_seed(SEED)
    names: dict[str, Any] = {"Model": Model, "torch": torch, "dormant": dormant}
    exec(compile(code, "docs/distributed.md", "exec"), names)
    model = names["model"]
    return {"lazy": lazy_names(model), "gathered": gathered_tensors(model)}
