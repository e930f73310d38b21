"""Quantized and divided by parallelize_module: each rank packs its part of each weight.

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
from jobs.models import SEED
from jobs.parallel_quantized import DIVIDED, Parallel, elements, outputs_of
from jobs.quantized import ORDERS
from launch import RunRanks

from compare import assert_same_bits

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
from peers import four_bit, int8


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("parallel") / "model.safetensors"
    safetensors.torch.save_file(Parallel().state_dict(), path)
    return path


def eager(path: Path | None, quantized: Callable[[Any], Any]) -> Any:
    torch.manual_seed(SEED)
    model: Any = Parallel()
    if path is not None:
        model.load_state_dict(safetensors.torch.load_file(path))
    for name in DIVIDED:
        setattr(model, name, quantized(getattr(model, name)))
    return model


def check(
    ranks: list[dict[str, Any]], expected: Any, divided: dict[str, int], shards: int = 1
) -> None:
    parts = len(ranks) // shards
    whole = {name: elements(getattr(expected, name)) for name in DIVIDED}
    outputs = outputs_of(expected)
    for rank, found in enumerate(ranks):
        where = f"rank {rank} of {len(ranks)}"
        for name, matrix in whole.items():
            part = matrix
            if name in divided:
                part = matrix.chunk(parts, divided[name])[rank % parts]
                assert found["bytes"][name] * len(ranks) == getattr(expected, name).weight.nbytes
            assert_same_bits(part.contiguous(), found["elements"][name], f"{where}: {name}")
        assert list(found["outputs"]) == list(outputs)
        for name, tensor in outputs.items():
            # Some processors evaluate in bfloat16.
            close = {"rtol": 2e-2, "atol": 5e-3} if name == "evaluated" else {}
            torch.testing.assert_close(found["outputs"][name], tensor, **close)


def options(path: Path, order: str, **changed: Any) -> dict[str, Any]:
    defaults = {"kind": "nf4", "block_size": 64, "nested": True, "storage": "uint8"}
    return {"path": str(path), "order": order, **defaults, **changed}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_order(run_ranks: RunRanks, path: Path, order: str, world: int, kind: str) -> None:
    ranks = run_ranks(world, "parallel_quantized:run", **options(path, order, kind=kind))
    make = int8 if kind == "int8" else functools.partial(four_bit, quant_type="nf4")
    divided = {n: d for n, d in DIVIDED.items() if kind != "int8" or d == 0}
    check(ranks, eager(path if "load" in order else None, make), divided)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_divided_and_sharded(run_ranks: RunRanks, path: Path, order: str, kind: str) -> None:
    """parallelize_module over one dimension of a mesh, fully_shard over the other."""
    ranks = run_ranks(4, "parallel_quantized:run", **options(path, order, kind=kind, shards=2))
    make = int8 if kind == "int8" else functools.partial(four_bit, quant_type="nf4")
    divided = {n: d for n, d in DIVIDED.items() if kind != "int8" or d == 0}
    check(ranks, eager(path if "load" in order else None, make), divided, 2)


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("storage", "shards"), [("uint8", 1), ("bfloat16", 1), ("bfloat16", 2)])
def test_options(
    run_ranks: RunRanks, path: Path, block_size: int, nested: bool, storage: str, shards: int
) -> None:
    changed = {"kind": "fp4", "block_size": block_size, "nested": nested, "storage": storage}
    given = options(path, "quantize, divide, load", **changed, shards=shards)
    ranks = run_ranks(4, "parallel_quantized:run", **given)
    make = functools.partial(
        four_bit,
        quant_type="fp4",
        block_size=block_size,
        compress_statistics=nested,
        quant_storage=getattr(torch, storage),
    )
    check(ranks, eager(path, make), DIVIDED, shards)


def test_a_rank_reads_its_part(run_ranks: RunRanks, path: Path) -> None:
    order = "quantize, divide, load"
    whole, *_ = run_ranks(1, "parallel_quantized:run", **options(path, order))
    head = 4 * (64 * 8 + 8 + 64)  # and the bias of `down`
    for found in run_ranks(4, "parallel_quantized:run", **options(path, order)):
        assert found["read"] <= whole["read"] / 4 + head


MAKE = {"nf4": functools.partial(four_bit, quant_type="nf4"), "int8": int8}


WORLDS = pytest.mark.parametrize(("world", "shards"), [(2, 1), (4, 1), (4, 2), (8, 2), (8, 4)])


@pytest.mark.parametrize("kind", MAKE)
@WORLDS
def test_the_state_is_that_of_the_whole_layer(
    run_ranks: RunRanks, path: Path, kind: str, world: int, shards: int
) -> None:
    expected = eager(path, MAKE[kind]).state_dict()
    order = "quantize, divide, load"
    given = options(path, order, kind=kind, shards=shards)
    for found in run_ranks(world, "parallel_quantized:run", **given):
        for name, tensor in found["state"].items():
            if "absmax" in name or "quant_state" in name or "nested" in name:
                continue  # in full precision where parts end within blocks of scales
            whole = expected[name]
            assert_same_bits(whole, tensor.reshape(whole.shape), name)


@pytest.mark.parametrize("kind", MAKE)
@WORLDS
def test_folders(run_ranks: RunRanks, tmp_path: Path, kind: str, world: int, shards: int) -> None:
    model = eager(None, MAKE[kind])
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        tmp_path / "whole.safetensors",
    )
    arguments = {"kind": kind, "folder": str(tmp_path), "shards": shards}
    for found in run_ranks(world, "parallel_quantized:saved", **arguments):
        for name, matrix in found["elements"].items():
            assert_same_bits(elements(getattr(model, name)), matrix, name)


@pytest.mark.parametrize("kind", MAKE)
def test_copies_and_what_nobody_materialized(run_ranks: RunRanks, path: Path, kind: str) -> None:
    recorded, loaded = outputs_of(eager(None, MAKE[kind])), outputs_of(eager(path, MAKE[kind]))
    for found in run_ranks(2, "parallel_quantized:others", kind=kind, path=str(path)):
        for name, outputs in found.items():
            for key, tensor in (loaded if name == "copied" else recorded).items():
                close = {"rtol": 2e-2, "atol": 5e-3} if key == "evaluated" else {}
                torch.testing.assert_close(outputs[key], tensor, **close)


def test_refusals(run_ranks: RunRanks) -> None:
    expected = [
        "ValueError: parallelize_module: the weight of a Linear4bit, 10 x 96 in nf4, blocks of 64, "
        "double quantized, cannot be divided by rows among 2 ranks at the ends of blocks. That "
        "needs its number of rows a multiple of 4",
        "ValueError: parallelize_module: the weight of a Linear4bit, 10 x 96 in nf4, blocks of 64, "
        "double quantized, cannot be divided by columns among 2 ranks at the ends of blocks. That "
        "needs its number of columns a multiple of 128",
        "ValueError: parallelize_module: the 63 rows of a Linear8bitLt cannot be divided",
        "NotImplementedError: parallelize_module: the weight of a Linear8bitLt, 10 x 96",
        "ValueError: parallelize_module: the quantized layer has been divided before",
        "NotImplementedError: materialize: gate._fsdp_wrapped_module.weight was quantized by nf4, "
        "blocks of 64, double quantized, divided for tensor or expert parallelism, and taken by",
        "NotImplementedError: materialize: up.weight was quantized by nf4, blocks of 64, double "
        "quantized and then divided by distribute_tensor or distribute_module",
        "RuntimeError: dormant: the input of a parallel Linear4bit is not a DTensor",
    ]
    for messages in run_ranks(2, "parallel_quantized:refusals"):
        for beginning, message in zip(expected, messages, strict=True):
            assert message.startswith(beginning), message
