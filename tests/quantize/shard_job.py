"""What one of two ranks does in test_sharded.py: python shard_job.py CASE RANK RENDEZVOUS."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel_layers import ColumnParallelLinear
from peers import assert_same_quant_state, four_bit, int8
from stacked_models import built, mixtral, pack_by_library, stacks
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
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


def case_parallel_layers(rank: int) -> None:
    """They keep their class and forward, which multiplies by what is whole."""
    for scheme in ("nf4", "int8"):
        with dormant.lazy_init():
            model = nn.Sequential(ColumnParallelLinear(64, 128))
        dormant.quantize(model, scheme, skip=())
        fully_shard(model)
        refused("ColumnParallelLinear was divided", partial(dormant.materialize, model))


def case_fsdp1(rank: int) -> None:
    """Its flat parameters take floating point numbers only; storage_dtype is there for that."""
    scheme = dormant.FourBit(storage_dtype=torch.bfloat16)
    for keeps_parameters in (False, True):
        model = lazy()
        dormant.quantize(model, scheme, skip=())
        dormant.load(model, build(2).state_dict(), materialize=False)
        sharded: Any = FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=keeps_parameters
        )
        assert dormant.is_lazy(sharded)
        state = {f"_fsdp_wrapped_module.{n}": t for n, t in build(2).state_dict().items()}
        refused("no checkpoint matches", partial(dormant.load, sharded, state))
        dormant.materialize(sharded)
        eager = nn.Sequential(
            *(four_bit(each, quant_type="nf4", quant_storage=torch.bfloat16) for each in build(2))
        )
        inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
        assert_same_bits(sharded(inputs), eager(inputs), "forward")

    kept = FullyShardedDataParallel(lazy(), device_id=torch.device("cpu"), use_orig_params=True)
    refused("before fully_shard, FSDP", lambda: dormant.quantize(kept, scheme, skip=()))
    taken = FullyShardedDataParallel(lazy(), device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match="FSDP has flattened its weight; quantize before"):
        dormant.quantize(taken, scheme, skip=())


def case_int8_left_out(rank: int) -> None:
    """Whole on every rank."""
    with dormant.lazy_init():
        model = build(1).append(nn.Linear(64, 8))
    dormant.quantize(model, "int8", skip=["2"])
    fully_shard(model, ignored_params={model[0].weight, model[1].weight})
    dormant.materialize(model)
    torch.manual_seed(1)
    eager = build(1).append(nn.Linear(64, 8))
    eager[0], eager[1] = int8(eager[0]), int8(eager[1])  # type: ignore[arg-type]
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    assert isinstance(model[2].weight, DTensor)
    assert_same_bits(model(inputs), eager(inputs), "forward")


def case_experts(rank: int) -> None:
    experts(rank, loads_shards=False)
    experts(rank, loads_shards=True)


def experts(rank: int, *, loads_shards: bool) -> None:
    """Their packed bytes are parted, too; the parametrization unpacks what was gathered."""
    model, eager = built(mixtral, lazily=True), built(mixtral, lazily=False)
    names = stacks(eager)
    source = built(mixtral, lazily=False, seed=9).state_dict()
    eager.load_state_dict(source)
    linear = [r".*(self_attn|lm_head|gate)"]
    dormant.quantize(model, "nf4", skip=linear)
    if not loads_shards:
        dormant.load(model, source, materialize=False)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert dormant.is_lazy(model)
    if loads_shards:
        dormant.load(model, source)
    else:
        dormant.materialize(model)
    pack_by_library(eager, names, compress_statistics=True)
    for name in names:
        path, _, attribute = name.rpartition(".")
        mine = model.get_submodule(path).parametrizations[attribute]
        theirs = eager.get_submodule(path).parametrizations[attribute]
        assert isinstance(mine.original, DTensor)
        part = theirs.original.data.chunk(2)[rank]
        assert_same_bits(mine.original.to_local(), part, "part")
        assert_same_quant_state(mine[0].quant_state, theirs[0].quant_state)
    for tokens in ([[3]], [list(range(30))]):
        inputs = torch.tensor(tokens)
        assert_same_bits(model(inputs).logits, eager(inputs).logits, "forward")

    model = built(mixtral, lazily=True)
    fully_shard(model)
    refused("before fully_shard", lambda: dormant.quantize(model, "nf4", skip=linear))


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
