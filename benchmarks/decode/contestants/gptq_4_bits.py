"""GPTQ, 4 bits in groups of 128."""

from __future__ import annotations

import torch

from benchmarks.decode.words import Gptq, gptq_layer

NAME = "gptq, 4 bits"
EXACT = True
LIBRARY = "gptqmodel"
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return gptq_layer(rows, columns, 4, 128)


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    return Gptq(4).weight(layer)
