"""fp8 in blocks of 128x128: transformers' Fp8Dequantize."""

from __future__ import annotations

import torch

from benchmarks.decode.words import random_scales

NAME = "fp8, blocks of 128x128"
EXACT = True
LIBRARY = "transformers"
CONFIG = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    weight = torch.randn(rows, columns).clamp(-400, 400).to(torch.float8_e4m3fn)
    scales = random_scales(rows // 128, columns // 128, dtype=torch.bfloat16)
    return {"weight": weight, "weight_scale_inv": scales}


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    try:
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    except ImportError as missing:
        raise NotImplementedError("this transformers has no Fp8Dequantize") from missing
    weight: torch.Tensor = Fp8Dequantize(None)._dequantize_one(
        layer["weight"], layer["weight_scale_inv"], torch.bfloat16
    )
    return weight
