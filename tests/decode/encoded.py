"""Checkpoints whose weights are encoded, as the libraries concerned write them, of random bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    """uint8, every value about as often."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def random_float8(
    *shape: int, dtype: torch.dtype = torch.float8_e4m3fn, seed: int = 0
) -> torch.Tensor:
    """Every value of the dtype, NaN and infinity included."""
    return random_bytes(*shape, seed=seed).view(dtype)


def random_scales(
    *shape: int, dtype: torch.dtype = torch.float32, special: bool = False, seed: int = 1
) -> torch.Tensor:
    """Positive numbers of many magnitudes; with `special` also 0, -1, infinity, NaN, a denormal."""
    if dtype in (torch.uint8, torch.float8_e8m0fnu):
        codes = random_bytes(*shape, seed=seed)
        return (codes if special else codes % 16 + 120).view(dtype)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(shape, generator=generator) * 2.0 ** torch.randint(
        -12, 4, shape, generator=generator
    )
    if special and scales.numel() >= 5:
        odd = torch.tensor([0.0, -1.0, float("inf"), float("nan"), 1e-40])
        scales.view(-1)[:5] = odd
    return scales.to(dtype)


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    quantization: Mapping[str, Any] | None = None,
    *,
    dtype: str | None = "bfloat16",
    config: Mapping[str, Any] | None = None,
    files: int = 1,
) -> Path:
    """A folder with these tensors as safetensors, and a config.json.

    Args:
        folder: where to.
        tensors: by name.
        quantization: the quantization_config; None writes none.
        dtype: that of the model, in config.json.
        config: more of config.json; without it and `quantization` there is no config.json.
        files: how many, tensors in turn, with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if files == 1:
        save_file(dict(tensors), folder / "model.safetensors")
    else:
        shards: list[dict[str, torch.Tensor]] = [{} for _ in range(files)]
        where = {}
        for place, (name, tensor) in enumerate(tensors.items()):
            shards[place % files][name] = tensor
            where[name] = f"model-{place % files}.safetensors"
        for place, shard in enumerate(shards):
            save_file(shard, folder / f"model-{place}.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": where})
        )
    if quantization is not None or config is not None:
        said = dict(config or {})
        if dtype is not None:
            said["dtype"] = dtype
        if quantization is not None:
            said["quantization_config"] = dict(quantization)
        (folder / "config.json").write_text(json.dumps(said))
    return folder


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def compressed(format: str, ignore: tuple[str, ...] = (), **weights: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors with one group."""
    settings = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}},
    }


def fp8_blocks(
    rows: int, columns: int, block: int = 128, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """`weight` and `weight_scale_inv`."""
    return {
        "weight": random_float8(rows, columns, seed=seed),
        "weight_scale_inv": random_scales(
            -(-rows // block), -(-columns // block), dtype=dtype, seed=seed + 1
        ),
    }


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With a prefix before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def decoded_blocks(
    weight: torch.Tensor, scales: torch.Tensor, rows: int, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """float32 products of a weight and its scales in blocks, rounded once: plain PyTorch."""
    spread = scales.float().repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    spread = spread[..., : weight.shape[-2], : weight.shape[-1]]
    return (weight.float() * spread).to(dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits; what is NaN in both may have any."""
    assert found.shape == expected.shape
    assert found.dtype is expected.dtype
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    same = found.contiguous().view(integers) == expected.contiguous().view(integers)
    same |= found.isnan() & expected.isnan()
    wrong = (~same).nonzero()
    assert same.all(), (
        f"{len(wrong)} of {same.numel()} differ, first at {wrong[0].tolist()}: "
        f"{found[tuple(wrong[0])].item()!r}, expected {expected[tuple(wrong[0])].item()!r}"
    )
