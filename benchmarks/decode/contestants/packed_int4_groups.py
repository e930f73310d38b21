"""compressed-tensors' pack-quantized, 4 bits, groups."""

from __future__ import annotations

import torch

from benchmarks.decode import compressed

NAME = "pack-quantized, 4 bits, groups"
EXACT = True
LIBRARY = "compressed-tensors"
WEIGHTS = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": 128,
    "symmetric": True,
}
CONFIG = compressed.config("pack-quantized", WEIGHTS)


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return compressed.packed_layer(rows, columns, WEIGHTS)


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    return compressed.decompress("pack-quantized", WEIGHTS, layer)
