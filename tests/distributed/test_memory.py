"""No rank takes more memory than its own part of the model, and a fixed amount.

The model takes 320 MiB, 128 MiB of them in one tensor, so the bounds would notice one whole tensor.
"""

from __future__ import annotations

import pytest
from launch import RunRanks

MIB = 1 << 20
WHOLE = 320 * MIB
FIXED = 64 * MIB


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("fully_shard", [80, 80, 80, 80]),
        ("hybrid_shard", [160, 160, 160, 160]),
        ("distribute_tensor", [80, 80, 80, 80]),
        ("parallelize_module", [80, 80, 80, 80]),
        ("pipeline", [192, 32, 64, 32]),
        ("fsdp1", [80, 80, 80, 80]),
    ],
)
def test_a_rank_takes_its_part(run_ranks: RunRanks, kind: str, parts: list[int]) -> None:
    for rank, result in enumerate(run_ranks(4, "memory:peak", kind=kind)):
        assert result["part"] == parts[rank] * MIB
        assert result["part"] <= result["peak"] + MIB  # the pages really were there
        assert result["peak"] <= result["part"] + FIXED, f"rank {rank}: {result}"
        assert result["part"] + FIXED < WHOLE


@pytest.mark.parametrize("kind", ["ddp", "ddp without broadcast"])
def test_ddp_takes_what_it_takes_for_an_eager_model(run_ranks: RunRanks, kind: str) -> None:
    # The model and the gradient buckets, which DDP allocates when it is constructed.
    eager = run_ranks(2, "memory:peak", kind=kind, lazy=False)
    for rank, result in enumerate(run_ranks(2, "memory:peak", kind=kind)):
        assert result["peak"] <= eager[rank]["peak"] + FIXED, f"rank {rank}: {result}"
        assert result["part"] == WHOLE
        assert result["peak"] + MIB >= WHOLE
        assert result["peak"] <= 2 * WHOLE + FIXED, f"rank {rank}: {result}"
