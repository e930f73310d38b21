"""AWQ, version gemm, groups of 128: `dequantize_gemm` of AutoAWQ, its operators one for one."""

from __future__ import annotations

import torch

from benchmarks.decode.words import random_scales, random_words

NAME = "awq gemm, 4 bits"
EXACT = True
LIBRARY = "AutoAWQ"
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {
        "qweight": random_words(columns, rows // 8),
        "qzeros": random_words(columns // 128, rows // 8),
        "scales": random_scales(columns // 128, rows),
    }


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    shifts = torch.arange(0, 32, 4)
    places = torch.arange(layer["scales"].shape[1]).view(-1, 8)[:, _ORDER].view(-1)

    def unpacked(words: torch.Tensor) -> torch.Tensor:
        codes = torch.bitwise_right_shift(words[:, :, None], shifts[None, None, :]).to(torch.int8)
        return torch.bitwise_and(codes.view(len(codes), -1)[:, places], 15)

    weight, zeros = unpacked(layer["qweight"]), unpacked(layer["qzeros"])
    scales = layer["scales"].repeat_interleave(128, dim=0)
    return ((weight - zeros.repeat_interleave(128, dim=0)) * scales).T
