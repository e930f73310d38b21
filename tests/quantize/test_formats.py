"""Layers that are quantized lazily have the bits that bitsandbytes makes of the eager layer."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from peers import assert_same_forward, assert_same_quantized, assert_same_state, four_bit, int8
from torch import nn

import dormant
from compare import assert_same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def linear(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, *, bias: bool = True
) -> nn.Linear:
    torch.manual_seed(rows * columns)
    layer = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.mul_(3)
    return layer


def both(
    scheme: Any,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = True,
) -> tuple[Any, nn.Linear]:
    """A layer quantized by us, and the eager one to be quantized by bitsandbytes."""
    with dormant.lazy_init():
        layer = linear(rows, columns, dtype, bias=bias)
    dormant.quantize(layer, scheme)
    assert dormant.is_lazy(layer)
    dormant.materialize(layer)
    assert not dormant.is_lazy(layer)
    return layer, linear(rows, columns, dtype, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bit_layers(kind: Literal["nf4", "fp4"], nested: bool, dtype: torch.dtype) -> None:
    mine, eager = both(dormant.FourBit(kind=kind, nested=nested), 64, 192, dtype)
    theirs = four_bit(eager, quant_type=kind, compress_statistics=nested)
    assert_same_quantized(mine, theirs)
    assert_same_state(mine, theirs)
    assert_same_forward(mine, theirs, 192, torch.float32)


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_block_sizes(block_size: int) -> None:
    mine, eager = both(dormant.FourBit(block_size=block_size), 96, 128)
    theirs = four_bit(eager, quant_type="nf4", block_size=block_size)
    assert_same_quantized(mine, theirs)
    assert_same_state(mine, theirs)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (7, 63), (33, 100), (64, 65)])
@pytest.mark.parametrize("nested", [True, False])
def test_ragged_tails(rows: int, columns: int, nested: bool) -> None:
    mine, eager = both(dormant.FourBit(nested=nested), rows, columns)
    theirs = four_bit(eager, quant_type="nf4", compress_statistics=nested)
    assert_same_quantized(mine, theirs)
    assert_same_state(mine, theirs)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32, torch.int8, torch.float16])
def test_packed_bytes_of_another_dtype(storage: torch.dtype) -> None:
    mine, eager = both(dormant.FourBit(storage_dtype=storage), 64, 128)
    theirs = four_bit(eager, quant_type="nf4", quant_storage=storage)
    assert_same_quantized(mine, theirs)
    assert_same_state(mine, theirs)


def test_compute_dtype_is_the_layers() -> None:
    mine, eager = both(dormant.FourBit(compute_dtype=torch.bfloat16), 64, 128)
    theirs = four_bit(eager, quant_type="nf4", compute_dtype=torch.bfloat16)
    assert_same_quantized(mine, theirs)
    assert_same_forward(mine, theirs, 128, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 128), (96, 100)])
def test_int8_layers(rows: int, columns: int, dtype: torch.dtype) -> None:
    mine, eager = both("int8", rows, columns, dtype)
    theirs = int8(eager)
    assert_same_quantized(mine, theirs)
    assert_same_state(mine, theirs)
    assert_same_forward(mine, theirs, columns, dtype)
    # A forward moves the statistics; what is saved stays the same.
    assert_same_state(mine, theirs)


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_layers_without_bias(scheme: str) -> None:
    mine, eager = both(scheme, 64, 64, bias=False)
    theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
    assert_same_quantized(mine, theirs)
    assert_same_state(mine, theirs)
    assert mine.bias is None


@pytest.mark.parametrize(
    "fill",
    [
        lambda w: w.zero_(),
        lambda w: w[3].zero_(),
        lambda w: w.fill_(-2.5),
        lambda w: w[1, 2:4].fill_(float("inf")),
        lambda w: w[2, 5].fill_(float("nan")),
        lambda w: w.uniform_(-1e-42, 1e-42),
        lambda w: w.mul_(1e30),
        lambda w: w.fill_(-0.0),
        lambda w: w.copy_(torch.randint(-8, 9, w.shape) / 8),
        lambda w: w.view(-1)[-1000:].mul_(1e-42),
    ],
    ids=[
        "zero",
        "zero row",
        "constant",
        "inf",
        "nan",
        "denormal",
        "large",
        "minus zero",
        "ties",
        "denormal blocks",
    ],
)
@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_special_values(scheme: str, fill: Any) -> None:
    def build() -> nn.Linear:
        layer = linear(64, 96)
        with torch.no_grad():
            fill(layer.weight)
        return layer

    with dormant.lazy_init():
        mine = build()
    dormant.quantize(mine, scheme)
    dormant.materialize(mine)
    eager = build()
    theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
    assert_same_bits(mine.weight, theirs.weight, "weight")
    if scheme == "int8":
        assert_same_bits(mine.weight.SCB, theirs.weight.SCB, "SCB")
    else:
        assert_same_bits(mine.weight.absmax, theirs.weight.absmax, "absmax")


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_cast_before_is_what_is_quantized(scheme: str) -> None:
    with dormant.lazy_init():
        mine = linear(64, 128)
    mine.to(torch.bfloat16)
    dormant.quantize(mine, scheme)
    dormant.materialize(mine)
    eager = linear(64, 128).to(torch.bfloat16)
    theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
    assert_same_quantized(mine, theirs)
    assert_same_bits(mine.bias, theirs.bias, "bias")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_weight_so_large_that_the_offset_depends_on_the_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    mine, eager = both("nf4", 2048, 1040)
    assert_same_quantized(mine, four_bit(eager, quant_type="nf4"))


def test_one_random_number_stream() -> None:
    """Layers after a quantized one, and the generator, are as if nothing had been quantized."""
    torch.manual_seed(3)
    with dormant.lazy_init():
        first = nn.Linear(64, 64)
        dormant.quantize(first, "nf4")
        second = nn.Linear(8, 8)
    state = torch.get_rng_state()
    dormant.materialize(second)
    torch.manual_seed(3)
    nn.Linear(64, 64)
    eager = nn.Linear(8, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert_same_bits(second.weight, eager.weight, "weight")


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("order", ["packed first", "statistics first"])
def test_outputs_may_come_to_life_one_by_one(scheme: str, order: str) -> None:
    with dormant.lazy_init():
        mine: Any = linear(64, 128)
    dormant.quantize(mine, scheme)
    state = mine.weight.quant_state if scheme == "nf4" else None
    statistics = [mine.weight.SCB] if state is None else [state.offset, state.absmax]
    parts = [mine.weight, *statistics]
    for part in parts if order == "packed first" else reversed(parts):
        dormant.materialize(part)
        assert not dormant.is_lazy(part)
    dormant.materialize(mine)
    eager = linear(64, 128)
    theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
    assert_same_quantized(mine, theirs)


WEIGHTS = {
    "transposed": lambda: torch.randn(64, 96).t(),
    "rows of a larger one": lambda: torch.randn(200, 64)[3:99],
    "columns of a larger one": lambda: torch.randn(96, 100)[:, 5:69],
    "every second row": lambda: torch.randn(192, 64)[::2],
    "one column repeated": lambda: torch.randn(96, 1).expand(96, 64),
    "what only runs whole": lambda: torch.linalg.qr(torch.randn(96, 96))[0][:, :64],
    "sum of two": lambda: torch.randn(96, 64).add_(torch.randn(96, 64)),
}


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("weight", list(WEIGHTS))
def test_weights_of_any_geometry_and_history(weight: str, scheme: str) -> None:
    def build() -> nn.Linear:
        layer = linear(96, 64)
        layer.weight = nn.Parameter(WEIGHTS[weight]())
        return layer

    with dormant.lazy_init():
        mine: Any = build()
    dormant.quantize(mine, scheme)
    assert dormant.is_lazy(mine.weight)
    dormant.materialize(mine)
    eager = build()
    eager.weight = nn.Parameter(eager.weight.detach().contiguous())
    theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
    assert_same_quantized(mine, theirs)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_an_interrupt_leaves_layers_lazy_and_a_second_call_finishes(scheme: str) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(6)))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with dormant.lazy_init():
        model = build()
    dormant.quantize(model, scheme, skip=())
    with pytest.raises(KeyboardInterrupt):
        dormant.materialize(model, progress=interrupt)
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    for mine, eager in zip(model, build(), strict=True):
        theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
        assert_same_quantized(mine, theirs)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_memory_budget_gives_the_same_bits(scheme: str) -> None:
    with dormant.lazy_init():
        mine: Any = linear(1024, 512)
    dormant.quantize(mine, scheme)
    with pytest.raises(ValueError, match="memory_budget"):
        dormant.materialize(mine, memory_budget=1)
    dormant.materialize(mine, memory_budget=2 << 20)
    eager = linear(1024, 512)
    theirs = int8(eager) if scheme == "int8" else four_bit(eager, quant_type=scheme)
    assert_same_quantized(mine, theirs)
