"""mxfp4 of gpt-oss, one expert: transformers' convert_moe_packed_tensors."""

from __future__ import annotations

import torch

NAME = "mxfp4"
EXACT = True
LIBRARY = "transformers"
CONFIG = {"quant_method": "mxfp4"}


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    shape = (1, rows, columns // 32)
    return {
        "weight_blocks": torch.randint(0, 256, (*shape, 16), dtype=torch.uint8),
        "weight_scales": torch.randint(120, 130, shape, dtype=torch.uint8),
    }


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    try:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    except ImportError as missing:
        raise NotImplementedError("this transformers has no mxfp4") from missing
    weight: torch.Tensor = convert_moe_packed_tensors(
        layer["weight_blocks"], layer["weight_scales"]
    )
    return weight
