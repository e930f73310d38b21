"""Quantized and sharded: each rank packs its own part, and the scales are those of the whole.

Compared with what bitsandbytes makes of the eager model in one process.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from jobs.models import SEED, Layered
from jobs.quantized import ORDERS, add_adapters, outputs_of, statistics, trained
from launch import RunRanks
from torch import nn

from compare import assert_same_bits

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
from peers import four_bit, int8


def eager(path: Path | None, quantized: Callable[[Any], Any]) -> Any:
    """The model in one process, its layers as bitsandbytes makes them."""
    torch.manual_seed(SEED)
    model = Layered()
    if path is not None:
        model.load_state_dict(safetensors.torch.load_file(path))
    model.layers = nn.ModuleList([quantized(each) for each in model.layers])
    return model


def check(ranks: list[dict[str, Any]], expected: Any, shards: int, order: str, path: Path) -> None:
    whole = {f"layers.{i}.weight": layer.weight.data for i, layer in enumerate(expected.layers)}
    found = {name: tensor.clone() for name, tensor in statistics(expected).items()}
    output, gradient = outputs_of(expected)
    for rank, result in enumerate(ranks):
        where = f"rank {rank} of {len(ranks)}"
        assert_same_bits(output, result["output"], where)
        assert_same_bits(gradient, result["gradient"], where)
        assert list(found) == list(result["statistics"])
        for name, tensor in found.items():
            assert_same_bits(tensor, result["statistics"][name], f"{where}: {name}")
        for name, part in result["parts"].items():
            if name in whole:
                chunks = whole[name].chunk(shards)
                number = rank % shards
                expected_part = chunks[number] if number < len(chunks) else whole[name][:0]
                assert_same_bits(expected_part, part, f"{where}: {name}")
        origins = {origin for name, origin in result["origins"].items() if "weight" in name}
        assert ("checkpoint" in origins) == ("load" in order), origins


def options(path: Path, way: str, order: str, **changed: Any) -> dict[str, Any]:
    defaults = {"kind": "nf4", "block_size": 64, "nested": True, "storage": "uint8"}
    return {"path": str(path), "way": way, "order": order, **defaults, **changed}


WAYS = [("FSDP2", 1, 1), ("FSDP2", 2, 2), ("FSDP2", 4, 4), ("HSDP", 4, 2)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("way", "world", "shards"), WAYS)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_order_gives_the_one_process_model(
    run_ranks: RunRanks, path: Path, order: str, way: str, world: int, shards: int, kind: str
) -> None:
    ranks = run_ranks(world, "quantized:run", **options(path, way, order, kind=kind))
    make = int8 if kind == "int8" else functools.partial(four_bit, quant_type="nf4")
    check(ranks, eager(path if "load" in order else None, make), shards, order, path)


@pytest.mark.parametrize("order", [order for order in ORDERS if "divide, load" not in order][:3])
def test_fsdp1(run_ranks: RunRanks, path: Path, order: str) -> None:
    """Its flat parameters need the dtype of the biases; no checkpoint fits them."""
    ranks = run_ranks(2, "quantized:run", **options(path, "FSDP1", order, storage="float32"))
    make = functools.partial(four_bit, quant_type="nf4", quant_storage=torch.float32)
    check(ranks, eager(path if "load" in order else None, make), 2, order, path)


@pytest.mark.parametrize("block_size", [32, 128, 4096])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_blocks_that_parts_cut(
    run_ranks: RunRanks, path: Path, block_size: int, nested: bool, world: int
) -> None:
    order = "quantize, divide, load"
    changed = {"kind": "fp4", "block_size": block_size, "nested": nested, "storage": "bfloat16"}
    ranks = run_ranks(world, "quantized:run", **options(path, "FSDP2", order, **changed))
    make = functools.partial(
        four_bit,
        quant_type="fp4",
        block_size=block_size,
        compress_statistics=nested,
        quant_storage=torch.bfloat16,
    )
    check(ranks, eager(path, make), world, order, path)


KINDS = {"nf4": functools.partial(four_bit, quant_type="nf4"), "int8": int8}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2])
def test_adapters_are_trained_as_in_one_process(run_ranks: RunRanks, kind: str, world: int) -> None:
    model = eager(None, KINDS[kind])
    add_adapters(model)
    expected = trained(model)
    for output in run_ranks(world, "quantized:train", kind=kind):
        assert_same_bits(expected, output, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_policies_of_fully_shard(run_ranks: RunRanks, kind: str) -> None:
    expected = outputs_of(eager(None, KINDS[kind]))[0]
    model = eager(None, KINDS[kind])  # whose layers take the dtype of their first input
    for layer in model.layers:
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.bfloat16()
    model.head.bfloat16()
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    mixed = model(inputs.bfloat16()).detach()
    for found in run_ranks(2, "quantized:policies", kind=kind):
        for name, output in found.items():
            assert_same_bits(mixed if name == "mixed" else expected, output, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 4])
def test_state_dicts_and_folders(
    run_ranks: RunRanks, tmp_path: Path, kind: str, world: int
) -> None:
    model = eager(None, KINDS[kind])
    expected = model.state_dict()
    output = outputs_of(model)[0]
    for found in run_ranks(world, "quantized:states", kind=kind, folder=str(tmp_path)):
        assert found["lazy names"] == list(expected)
        for state in ("state", "lazy state", "torch state"):
            assert list(found[state]) == list(expected), state
            for name, tensor in expected.items():
                assert_same_bits(tensor, found[state][name], f"{state}: {name}")
        assert set(found["full"]) == set(expected)
        for name, tensor in found["full"].items():
            assert_same_bits(expected[name], tensor, name)
        assert_same_bits(output, found["lazy"], "lazy")
        assert_same_bits(output, found["torch"], "torch")
