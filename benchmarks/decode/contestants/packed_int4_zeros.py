"""compressed-tensors' pack-quantized, 4 bits, zeros."""

from __future__ import annotations

import torch

from benchmarks.decode import compressed

NAME = "pack-quantized, 4 bits, zeros"
EXACT = True
LIBRARY = "compressed-tensors"
WEIGHTS = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": 128,
    "symmetric": False,
}
CONFIG = compressed.config("pack-quantized", WEIGHTS)


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return compressed.packed_layer(rows, columns, WEIGHTS)


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    return compressed.decompress("pack-quantized", WEIGHTS, layer)
