"""Layers of compressed-tensors for contestants, and the library's own decompression."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from benchmarks.decode.words import random_scales, random_words


def config(format: str, weights: dict[str, Any]) -> dict[str, Any]:
    """A quantization_config with one group for all layers."""
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def packed_layer(rows: int, columns: int, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    bits, groups = weights["num_bits"], columns // (weights["group_size"] or columns)
    layer = {
        "weight_packed": random_words(rows, columns * bits // 32),
        "weight_scale": random_scales(rows, groups, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not weights["symmetric"]:
        layer["weight_zero_point"] = random_words(rows * bits // 32, groups)
    return layer


@cache
def _scheme(format: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    try:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
    except ImportError as missing:
        raise NotImplementedError("compressed-tensors is not installed") from missing
    scheme = QuantizationScheme(targets=["Linear"], weights=dict(settings))
    return BaseCompressor.get_value_from_registry(format), scheme


def decompress(
    format: str, weights: dict[str, Any], layer: dict[str, torch.Tensor]
) -> torch.Tensor:
    compressor, scheme = _scheme(format, tuple(weights.items()))
    weight: torch.Tensor = compressor.decompress(layer, scheme)["weight"]
    return weight
