"""What bitsandbytes makes of eager layers by its own code, and comparisons with it."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import nn

from compare import assert_same_bits

Layer = Any


def four_bit(layer: nn.Linear, **options: Any) -> Layer:
    """A Linear4bit made of an eager layer."""
    block_size = options.pop("block_size", 64)
    storage = options.get("quant_storage", torch.uint8)
    quantized: Layer = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, **options
    )
    quantized.weight = bitsandbytes.nn.Params4bit(
        layer.weight.detach().clone(),
        requires_grad=False,
        blocksize=block_size,
        compress_statistics=options.get("compress_statistics", True),
        quant_type=options.get("quant_type", "fp4"),
        quant_storage=storage,
        module=quantized,
    )
    quantized.bias = layer.bias
    quantized.train(layer.training)
    return quantized.to("cpu")


def int8(layer: nn.Linear, *, threshold: float = 6.0) -> Layer:
    """A Linear8bitLt made of an eager layer."""
    quantized: Layer = bitsandbytes.nn.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
    )
    quantized.weight = bitsandbytes.nn.Int8Params(
        layer.weight.detach().clone(), requires_grad=False, has_fp16_weights=False
    )
    quantized.bias = layer.bias
    quantized.train(layer.training)
    return quantized.to("cpu")


def assert_same_state(got: nn.Module, expected: nn.Module) -> None:
    """Fails unless both save the same names in the same order with the same bits."""
    mine, theirs = got.state_dict(), expected.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert_same_bits(mine[name], tensor, name)


def assert_same_quantized(got: Layer, expected: Layer) -> None:
    """Fails unless two layers of bitsandbytes are equal in everything it looks at."""
    assert type(got) is type(expected)
    assert type(got.weight) is type(expected.weight)
    assert_same_bits(got.weight, expected.weight, "weight")
    assert got.weight.requires_grad is expected.weight.requires_grad is False
    if isinstance(expected, bitsandbytes.nn.Linear4bit):
        _assert_same_4bit(got, expected)
    else:
        _assert_same_int8(got, expected)
    for name in ("in_features", "out_features", "training"):
        assert getattr(got, name) == getattr(expected, name), name
    # A Conv1D keeps its own attributes, too.
    assert set(vars(got)) - {"nf", "nx"} == set(vars(expected))


def _assert_same_4bit(got: Layer, expected: Layer) -> None:
    assert got.quant_state is got.weight.quant_state
    assert got.weight.module is got
    for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
        assert getattr(got.weight, name) == getattr(expected.weight, name), name
    assert got.weight.bnb_quantized is True
    assert got.compute_dtype == expected.compute_dtype
    assert got.compute_type_is_set == expected.compute_type_is_set
    assert_same_quant_state(got.quant_state, expected.quant_state)


def assert_same_quant_state(got: Any, expected: Any) -> None:
    """Fails unless two QuantStates hold the same."""
    assert set(vars(got)) == set(vars(expected))
    for name, value in vars(expected).items():
        mine = getattr(got, name)
        if isinstance(value, torch.Tensor):
            assert_same_bits(mine, value, name)
        elif name == "state2" and value is not None:
            assert_same_quant_state(mine, value)
        else:
            assert mine == value, name


def _assert_same_int8(got: Layer, expected: Layer) -> None:
    assert_same_bits(got.weight.CB, expected.weight.CB, "CB")
    assert_same_bits(got.weight.SCB, expected.weight.SCB, "SCB")
    assert got.weight.CB.data_ptr() == got.weight.data_ptr()
    assert got.weight.has_fp16_weights is False
    assert vars(got.state) == vars(expected.state)


def assert_same_forward(got: Layer, expected: Layer, columns: int, dtype: torch.dtype) -> None:
    """Fails unless both give the same bits in training mode and in evaluation."""
    for training in (True, False):
        # Where bitsandbytes has a faster kernel, only multiples of 32 rows work in evaluation.
        if not training and expected.weight.numel() and got.out_features % 32:
            continue
        inputs = torch.randn(5, columns, generator=torch.Generator().manual_seed(7)).to(dtype)
        mine = got.train(training)(inputs)
        theirs = expected.train(training)(inputs)
        assert_same_bits(mine, theirs, f"forward, training={training}")
