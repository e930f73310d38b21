"""What one of two ranks does in test_sharded.py: python shard_job.py CASE RANK RENDEZVOUS."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peers import assert_same_quant_state, four_bit
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import dormant
from compare import assert_same_bits


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False))


def lazy() -> Any:
    with dormant.lazy_init():
        return build(1)


def refused(error: str, action: Any) -> None:
    with pytest.raises(NotImplementedError, match=error):
        action()


def shards_of_packed_bytes(rank: int, seed: int, prepare: Any) -> None:
    for storage in (torch.uint8, torch.float32):
        scheme = dormant.FourBit(storage_dtype=storage)
        model = lazy()
        dormant.quantize(model, scheme, skip=())
        prepare(model)
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
        assert dormant.is_lazy(model)
        dormant.materialize(model)
        eager: Any = nn.Sequential(
            *(four_bit(each, quant_type="nf4", quant_storage=storage) for each in build(seed))
        )
        inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
        for mine, theirs in zip(model, eager, strict=True):
            assert isinstance(mine.weight, DTensor)
            part = theirs.weight.data.chunk(2)[rank]
            assert_same_bits(mine.weight.to_local(), part, "part")
            assert_same_quant_state(mine.quant_state, theirs.quant_state)
        assert_same_bits(model(inputs), eager(inputs), "forward")


def case_from_recipes(rank: int) -> None:
    shards_of_packed_bytes(rank, 1, lambda model: None)


def case_from_a_checkpoint(rank: int) -> None:
    shards_of_packed_bytes(
        rank, 2, lambda model: dormant.load(model, build(2).state_dict(), materialize=False)
    )


def case_refusals(rank: int) -> None:
    model = lazy()
    fully_shard(model)
    refused("before fully_shard", lambda: dormant.quantize(model, "nf4", skip=()))

    model = lazy()
    dormant.quantize(model, "nf4", skip=())
    fully_shard(model)
    refused("Load first and shard then", lambda: dormant.load(model, build(2).state_dict()))

    model = lazy()
    dormant.quantize(model, "int8", skip=())
    fully_shard(model)
    refused("Quantise with dormant.FourBit", lambda: dormant.materialize(model))


if __name__ == "__main__":
    case, number, rendezvous = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(number), world_size=2
    )
    globals()[f"case_{case}"](int(number))
    dist.barrier()
    print("done", flush=True)
    # gloo's teardown sometimes aborts a process that has done its work.
    os._exit(0)
