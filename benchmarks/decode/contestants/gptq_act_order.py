"""GPTQ, 4 bits in groups of 128 whose columns are in the order of activations."""

from __future__ import annotations

import torch

from benchmarks.decode.words import Gptq, gptq_layer

NAME = "gptq, 4 bits, act-order"
EXACT = True
LIBRARY = "gptqmodel"
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    layer = gptq_layer(rows, columns, 4, 128)
    return {**layer, "g_idx": layer["g_idx"][torch.randperm(columns)].clone()}


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    return Gptq(4).weight(layer)
