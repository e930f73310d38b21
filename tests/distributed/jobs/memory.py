"""What it costs each rank to bring its part of a large model to life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import dormant
from dormant.reporting.memory import highest_resident_bytes, resident_bytes
from jobs.models import SEED, Large
from jobs.stages import keep_stage


def _fully_shard(model: nn.Module, *mesh: int) -> nn.Module:
    over = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :])
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=over)
    fully_shard(model, mesh=over)
    return model


def _columns(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def partition(_: str, part: nn.Module, __: Any) -> None:
        for name, parameter in list(part.named_parameters(recurse=False)):
            placed = distribute_tensor(parameter, mesh, [Shard(1)], src_data_rank=None)
            part.register_parameter(name, nn.Parameter(placed))

    return distribute_module(model, mesh, partition)


def _tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"embedding": ColwiseParallel(), "blocks.*": RowwiseParallel()}
    return parallelize_module(model, mesh, plan, src_data_rank=None)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fully_shard": lambda model: _fully_shard(model, dist.get_world_size()),
    "hybrid_shard": lambda model: _fully_shard(model, 2, dist.get_world_size() // 2),
    "distribute_tensor": _columns,
    "parallelize_module": _tensor_parallel,
    "pipeline": lambda model: keep_stage(model, dist.get_rank(), dist.get_world_size()),
    "fsdp1": lambda model: FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), auto_wrap_policy=ModuleWrapPolicy([nn.Linear])
    ),
    "ddp": DistributedDataParallel,
    "ddp without broadcast": lambda model: DistributedDataParallel(model, init_sync=False),
}


def _build(kind: str, scale: int, lazy: bool) -> nn.Module:
    torch.manual_seed(SEED)
    if not lazy:
        return KINDS[kind](Large(scale))
    with dormant.lazy_init():
        model: nn.Module = Large(scale)
    model = KINDS[kind](model)
    dormant.materialize(model)
    return model


def peak(kind: str, lazy: bool = True) -> dict[str, int]:
    """Bytes of this rank's part, and how far the resident memory rose above where it was."""
    _build(kind, 64, lazy)  # what is imported, allocated or connected only once
    before = resident_bytes()
    model = _build(kind, 2048, lazy)
    after = highest_resident_bytes()
    assert before is not None
    assert after is not None
    parameters = [
        parameter.to_local() if isinstance(parameter, DTensor) else parameter
        for parameter in model.parameters()
    ]
    return {
        "part": sum(parameter.nbytes for parameter in parameters),
        "peak": after - before,
    }
