"""compressed-tensors' pack-quantized, 8 bits, channels."""

from __future__ import annotations

import torch

from benchmarks.decode import compressed

NAME = "pack-quantized, 8 bits, channels"
EXACT = True
LIBRARY = "compressed-tensors"
WEIGHTS = {
    "num_bits": 8,
    "type": "int",
    "strategy": "channel",
    "group_size": None,
    "symmetric": True,
}
CONFIG = compressed.config("pack-quantized", WEIGHTS)


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return compressed.packed_layer(rows, columns, WEIGHTS)


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    return compressed.decompress("pack-quantized", WEIGHTS, layer)
