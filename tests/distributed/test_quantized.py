"""Quantized and sharded: each rank packs its own part, and the scales are those of the whole.

Compared with what bitsandbytes makes of the eager model in one process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from jobs.models import SEED, Layered
from jobs.quantized import statistics
from launch import RunRanks
from torch import nn

from compare import assert_same_bits

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
from peers import four_bit

ORDERS = [
    "quantize, shard, materialize",
    "quantize, load lazily, shard, materialize",
    "load lazily, quantize, shard, materialize",
    "quantize, shard, load",
    "quantize, shard, materialize, load",
    "quantize, shard, load lazily, materialize",
    "quantize, shard, load, load",
]


def eager(path: Path | None, **options: Any) -> nn.Module:
    torch.manual_seed(SEED)
    model = Layered()
    if path is not None:
        model.load_state_dict(safetensors.torch.load_file(path))
    model.layers = nn.ModuleList([four_bit(each, **options) for each in model.layers])
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    safetensors.torch.save_file(Layered().state_dict(), path)
    return path


def check(
    ranks: list[dict[str, Any]], expected: nn.Module, shards: int, order: str, path: Path
) -> None:
    whole = {f"layers.{i}.weight": layer.weight.data for i, layer in enumerate(expected.layers)}
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    output = expected(inputs).detach()
    for rank, result in enumerate(ranks):
        where = f"rank {rank} of {len(ranks)}"
        assert_same_bits(output, result["output"], where)
        found = statistics(expected)
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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("way", "world", "shards"),
    [("FSDP2", 1, 1), ("FSDP2", 2, 2), ("FSDP2", 4, 4), ("HSDP", 4, 2), ("FSDP1", 2, 2)],
)
def test_every_order_gives_the_one_process_model(
    run_ranks: RunRanks, path: Path, order: str, way: str, world: int, shards: int
) -> None:
    if way == "FSDP1" and order.index("load" if "load" in order else "mat") > order.index("shard"):
        if "load" in order:
            pytest.skip("FSDP1 has no parameters that a checkpoint fits")
    storage = "float32" if way == "FSDP1" else "uint8"
    arguments = {
        "way": way,
        "order": order,
        "path": str(path),
        "kind": "nf4",
        "block_size": 64,
        "nested": True,
        "storage": storage,
    }
    ranks = run_ranks(world, "quantized:run", **arguments)
    expected = eager(
        path if "load" in order else None,
        quant_type="nf4",
        quant_storage=getattr(torch, storage),
    )
    check(ranks, expected, shards, order, path)
