"""Decoded tensors have the bits of the library that wrote them, for every value of every code."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from encoded import (
    BITSANDBYTES,
    FP8,
    MXFP4,
    assert_same,
    compressed,
    decoded_blocks,
    random_bytes,
    random_float8,
    random_scales,
    under,
    write,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import dormant

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def only(folder: Path, name: str, decode: Any = True) -> torch.Tensor:
    """The tensor of a checkpoint, materialized."""
    tensor = dormant.open_checkpoint(folder, decode=decode)[name]
    assert dormant.is_lazy(tensor)
    dormant.materialize(tensor)
    return tensor


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "scales", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu, torch.uint8], ids=str
)
@pytest.mark.parametrize("shape", [(256, 384), (64, 96), (3, 32, 256)], ids=str)
def test_block_fp8_as_transformers(
    tmp_path: Path, dtype: str, scales: torch.dtype, shape: tuple[int, ...]
) -> None:
    block = (32, 32) if shape[-2] < 128 else (128, 128)
    weight = random_float8(*shape)
    grid = (*shape[:-2], shape[-2] // block[0], shape[-1] // block[1])
    scale = random_scales(*grid, dtype=scales, special=True)
    tensors = {"weight": weight, "weight_scale_inv": scale}
    write(tmp_path, under("a", tensors), {**FP8, "weight_block_size": block}, dtype=dtype)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, DTYPES[dtype])
    assert_same(only(tmp_path, "a.weight"), expected)


@pytest.mark.parametrize(("rows", "columns"), [(576, 200), (1, 1), (129, 127), (100, 300)])
@pytest.mark.parametrize("block", [(128, 128), (64, 32)], ids=str)
def test_block_fp8_with_ragged_edges(
    tmp_path: Path, rows: int, columns: int, block: tuple[int, int]
) -> None:
    weight = random_float8(rows, columns)
    scale = random_scales(-(-rows // block[0]), -(-columns // block[1]))
    tensors = {"weight": weight, "weight_scale_inv": scale}
    write(tmp_path, under("a", tensors), {**FP8, "weight_block_size": block})
    expected = decoded_blocks(weight, scale, *block, torch.bfloat16)
    assert_same(only(tmp_path, "a.weight"), expected)


def test_the_dtype_asked_for_is_what_the_product_is_rounded_to(tmp_path: Path) -> None:
    weight, scale = random_float8(256, 256), random_scales(2, 2)
    write(tmp_path, under("a", {"weight": weight, "weight_scale_inv": scale}), FP8)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        expected = Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)
        assert_same(only(tmp_path, "a.weight", decode=dtype), expected)
    exact = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert_same(only(tmp_path, "a.weight", decode=torch.float64), exact.double())


def test_packed_experts_of_deepseek_v4(tmp_path: Path) -> None:
    packed = random_bytes(64, 48).view(torch.int8)
    scale = random_scales(64, 3, dtype=torch.float8_e8m0fnu, special=True)
    tensors = {"weight": packed, "weight_scale_inv": scale}
    write(tmp_path, under("a", tensors), {**FP8, "expert_dtype": "fp4"})
    expected = Fp8Dequantize(None)._dequantize_one(packed, scale, torch.bfloat16)
    assert_same(only(tmp_path, "a.weight"), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("sizes", [(), (1,), (40, 1), (40,)], ids=str)
def test_scales_for_the_tensor_and_for_rows(
    tmp_path: Path, dtype: torch.dtype, sizes: tuple[int, ...]
) -> None:
    weight = random_float8(40, 33, dtype=dtype)
    scale = random_scales(*sizes)
    write(
        tmp_path,
        {"a.weight": weight, "a.weight_scale": scale, "a.input_scale_ub": torch.ones(1)},
        {"quant_method": "fbgemm_fp8"},
    )
    rows = scale.view(-1, 1) if scale.numel() > 1 else scale
    assert_same(only(tmp_path, "a.weight"), (weight.float() * rows).to(torch.bfloat16))


def decompressed(quantization: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What compressed-tensors makes of the tensors of a module."""
    group = quantization["config_groups"]["group_0"]
    scheme = QuantizationScheme(**group)
    compressor = BaseCompressor.get_value_from_registry(quantization["format"])
    return compressor.decompress(dict(tensors), scheme)["weight"]


@pytest.mark.core
@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
@pytest.mark.parametrize("kind", ["float", "int", "int with zeros"])
def test_bytes_of_compressed_tensors(
    tmp_path: Path, scales: torch.dtype, strategy: str, kind: str
) -> None:
    rows, columns = 96, 160
    extra: dict[str, Any] = {"group": {"group_size": 32}}.get(strategy, {})
    grid = {"tensor": (1,), "channel": (rows, 1), "group": (rows, 5), "block": (3, 3)}[strategy]
    if strategy == "block":
        extra = {"block_structure": [32, 64]}  # the last ones are smaller
    is_float = kind == "float"
    weight = random_float8(rows, columns)
    tensors = {
        "weight": weight if is_float else random_bytes(rows, columns).view(torch.int8),
        "weight_scale": random_scales(*grid, dtype=scales, special=True),
    }
    if kind == "int with zeros":
        tensors["weight_zero_point"] = random_bytes(*grid, seed=3).view(torch.int8)
    quantization = compressed(
        "float-quantized" if is_float else "int-quantized",
        type="float" if is_float else "int",
        symmetric=kind != "int with zeros",
        strategy=strategy,
        **extra,
    )
    write(tmp_path, under("a", tensors), quantization, dtype="float32")
    found = only(tmp_path, "a.weight")
    expected = decompressed(quantization, tensors)
    assert expected.dtype is scales  # whatever the model is of; then it is cast
    assert_same(found, expected.float())


def test_mxfp8_of_compressed_tensors(tmp_path: Path) -> None:
    tensors = {
        "weight": random_float8(64, 96),
        "weight_scale": random_scales(64, 3, dtype=torch.uint8, special=True),
    }
    quantization = compressed("mxfp8-quantized", strategy="group", group_size=32)
    quantization["config_groups"]["group_0"]["weights"]["scale_dtype"] = "torch.uint8"
    write(tmp_path, under("a", tensors), quantization)
    assert_same(only(tmp_path, "a.weight"), decompressed(quantization, tensors))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 3, 16), (1, 1, 1, 16), (3, 33, 5, 16)], ids=str)
def test_mxfp4_as_transformers(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    blocks, scales = random_bytes(*shape), random_bytes(*shape[:-1], seed=1)
    tensors = {"e.down_proj_blocks": blocks, "e.down_proj_scales": scales}
    write(tmp_path, {**tensors, "e.down_proj_bias": torch.ones(3)}, MXFP4, dtype=dtype)
    found = only(tmp_path, "e.down_proj")
    assert found.is_contiguous()
    assert_same(found, convert_moe_packed_tensors(blocks, scales, dtype=DTYPES[dtype]))


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_packed_floats_of_compressed_tensors(tmp_path: Path, kind: str) -> None:
    rows, columns, group = 48, 192, 32 if kind == "mxfp4" else 16
    grid = (rows, columns // group)
    tensors = {"weight_packed": random_bytes(rows, columns // 2)}
    settings: dict[str, Any] = {"num_bits": 4, "group_size": group}
    if kind == "mxfp4":
        tensors["weight_scale"] = random_bytes(*grid, seed=1)
        settings |= {"strategy": "group", "scale_dtype": "torch.uint8"}
    else:
        tensors["weight_scale"] = random_float8(*grid, seed=1)
        tensors["weight_global_scale"] = torch.tensor([917.3])
        settings |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    quantization = compressed(f"{kind}-pack-quantized", **settings)
    for dtype in ("bfloat16", "float32"):
        folder = write(tmp_path / dtype, under("a", tensors), quantization, dtype=dtype)
        expected = decompressed(quantization, tensors)
        assert expected.dtype is torch.bfloat16
        assert_same(only(folder, "a.weight"), expected.to(DTYPES[dtype]))


def four_bit(
    kind: str, shape: tuple[int, ...], block: int, dtype: torch.dtype, *, nested: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors that bitsandbytes saves of a weight, and what it decodes them to."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=block, quant_type=kind, compress_statistics=nested
    )
    saved = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    absmax = state.absmax
    if nested:
        absmax = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2)
        absmax = absmax + state.offset
    codes = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(-1)[: weight.numel()]
    scales = absmax.repeat_interleave(block)[: weight.numel()]
    expected = (state.code[codes.long()] * scales).to(dtype).view(shape)
    # The library's kernels agree where rows are whole numbers of blocks: see limits.
    if shape[-1] % block == 0 and len(shape) == 2:
        assert_same(bitsandbytes.functional.dequantize_4bit(packed, state), expected)
    return {"weight": packed, **saved}, expected


@pytest.mark.core
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bit_codes_of_bitsandbytes(
    tmp_path: Path, kind: str, dtype: str, nested: bool
) -> None:
    shapes = [(64, 128), (7, 96), (5, 63), (1, 1), (300, 256), (2, 3, 64)]
    for place, (shape, block) in enumerate(itertools.product(shapes, (64, 256))):
        tensors, expected = four_bit(kind, shape, block, DTYPES[dtype], nested=nested)
        if tensors["weight"].shape[0] == 1:
            continue  # which the library takes for a transposed one
        folder = write(tmp_path / str(place), under("a", tensors), BITSANDBYTES, dtype=dtype)
        assert_same(only(folder, "a.weight"), expected)


def test_codes_in_another_storage_dtype(tmp_path: Path) -> None:
    tensors, expected = four_bit("nf4", (64, 128), 64, torch.bfloat16, nested=True)
    tensors["weight"] = tensors["weight"].view(-1).view(torch.float32).view(-1, 1)
    write(tmp_path, under("a", tensors), BITSANDBYTES)
    assert_same(only(tmp_path, "a.weight"), expected)
    part = dormant.open_checkpoint(tmp_path)["a.weight"][3:9, 5:77].clone()
    dormant.materialize(part)
    assert_same(part, expected[3:9, 5:77])


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_of_bitsandbytes(tmp_path: Path, dtype: str) -> None:
    codes = random_bytes(40, 33).view(torch.int8)
    stats = random_scales(40)
    write(
        tmp_path,
        {"a.weight": codes, "a.SCB": stats, "a.weight_format": torch.tensor(0).to(torch.uint8)},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        dtype=dtype,
    )
    expected = bitsandbytes.functional.int8_vectorwise_dequant(codes, stats).to(DTYPES[dtype])
    assert_same(only(tmp_path, "a.weight"), expected)
    assert list(dormant.open_checkpoint(tmp_path)) == ["a.weight"]


@pytest.mark.parametrize("threads", [1, 2])
def test_any_part_of_a_tensor_alone(tmp_path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    weight, scale = random_float8(300, 520), random_scales(3, 5)
    blocks, exponents = random_bytes(3, 40, 4, 16), random_bytes(3, 40, 4, seed=1)
    tensors = {
        "a.weight": weight,
        "a.weight_scale_inv": scale,
        "e.x_blocks": blocks,
        "e.x_scales": exponents,
    }
    write(tmp_path, tensors, {"weight_block_size": [128, 128]})
    expected = {
        "a.weight": decoded_blocks(weight, scale, 128, 128, torch.bfloat16),
        "e.x": convert_moe_packed_tensors(blocks, exponents),
    }
    checkpoint = dormant.open_checkpoint(tmp_path)
    for name, whole in expected.items():
        parts = [
            lambda t: t[..., 3:17],
            lambda t: t[1:2],
            lambda t: t[..., 1::3],
            lambda t: t.transpose(-1, -2)[..., 2:9],
            lambda t: t.flatten()[1001:1009],
            lambda t: t.narrow(-2, 7, 9),
        ]
        for part in parts:
            cut = part(checkpoint[name]).contiguous()
            dormant.materialize(cut)
            assert_same(cut, part(whole).contiguous())
