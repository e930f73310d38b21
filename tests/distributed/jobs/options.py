"""What FSDP2 users set, and PyTorch's distributed checkpoints, with models that were lazy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional

import dormant
from jobs.held import (
    gathered_tensors,
    lazy_names,
    local_of,
    local_tensors,
    report,
    train_step,
)
from jobs.models import ROWS, TiedModel, eager_model, lazy_model

Model = Callable[[str], nn.Module]


def _shard(model: nn.Module, **options: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def _mixed_precision(make: Model) -> nn.Module:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return _shard(make("TiedModel"), mp_policy=policy)


def _kept_whole(make: Model) -> nn.Module:
    return _shard(make("TiedModel"), reshard_after_forward=False)


def _resharded_in_part(make: Model) -> nn.Module:
    return _shard(make("TiedModel"), reshard_after_forward=2)


def _offloaded(make: Model) -> nn.Module:
    return _shard(make("TiedModel"), offload_policy=CPUOffloadPolicy(pin_memory=False))


def _partly_real(make: Model) -> nn.Module:
    model = make("TiedModel")
    dormant.materialize(model.get_submodule("blocks.0"))
    return _shard(model)


def _ignoring_some(make: Model) -> nn.Module:
    model = make("TiedModel")
    return _shard(model, ignored_params={model.get_parameter("blocks.1.up.weight")})


def _frozen_in_part(make: Model) -> nn.Module:
    model = make("TiedModel")
    model.get_submodule("blocks.0").requires_grad_(False)
    return _shard(model)


def _cast_after_sharding(make: Model) -> nn.Module:
    return _shard(make("TiedModel")).to(torch.float64)


def _one_unit(make: Model) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = make("TiedModel")
    fully_shard([*model.get_submodule("blocks").children()], mesh=mesh)
    return fully_shard(model, mesh=mesh)


COMPOSITIONS = {
    composed.__name__.removeprefix("_"): composed
    for composed in (
        _mixed_precision,
        _kept_whole,
        _resharded_in_part,
        _offloaded,
        _partly_real,
        _ignoring_some,
        _frozen_in_part,
        _cast_after_sharding,
        _one_unit,
    )
}


def compose(name: str) -> dict[str, Any]:
    """Trains a step of a lazy and of an eager model that were composed alike."""
    tokens = torch.arange(ROWS)
    model = COMPOSITIONS[name](lazy_model)
    lazy = lazy_names(model)
    dormant.materialize(model, memory_budget=1 << 20)
    eager = COMPOSITIONS[name](eager_model)
    return report(model, lazy) | {
        "eager local": local_tensors(eager),
        "step": train_step(model, tokens),
        "eager step": train_step(eager, tokens),
    }


def gather_lazy() -> dict[str, Any]:
    """Asks lazy DTensors for the whole."""
    model = _shard(lazy_model("TiedModel"))
    before = lazy_names(model)
    gathered = gathered_tensors(model)
    dormant.materialize(gathered["angles"])  # a copy of a buffer that is no DTensor
    return {"lazy before": before, "gathered": gathered}


def checkpoint(folder: str, materialized: bool) -> dict[str, Any]:
    """Saves a sharded model by PyTorch's means, and loads it into a lazy one of another seed."""
    model = _shard(lazy_model("TiedModel"))
    if materialized:
        dormant.materialize(model)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)

    torch.manual_seed(1)
    with dormant.lazy_init():
        other = TiedModel()
    _shard(other)
    before = lazy_names(other)
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(other, state["model"])
    dormant.materialize([model, other])
    whole = get_model_state_dict(
        other, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {
        "lazy before": before,
        "local": local_tensors(other),
        "expected": local_tensors(model),
        "gathered": gathered_tensors(other),
        "whole": dict(whole),
    }


OPERATIONS: dict[str, Callable[[DTensor], Any]] = {
    "to": lambda x: x.to(torch.float64),
    "clone": torch.Tensor.clone,
    "sum": lambda x: x.sum().full_tensor(),
    "mul_": lambda x: x.detach().mul_(2),
    "zero_ and add_": lambda x: x.detach().zero_().add_(1),
    "copy_ by its other names": lambda x: torch.ops.aten.copy_(
        torch.Tensor.copy_(x.detach(), x.detach() + 1), x.detach() * 2
    ),
    "a list": lambda x: torch._foreach_mul([x.detach(), x.detach()], 2.0)[1],
    "of torch.nn.functional": functional.relu,
    "deepcopy": lambda x: copy.deepcopy(x.detach()),
}


def operate() -> dict[str, Any]:
    """Operators on DTensors whose parts are lazy, beside the same on real ones."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def results(make: Model) -> dict[str, torch.Tensor]:
        found = {}
        for name, operation in OPERATIONS.items():
            whole = make("TiedModel").get_parameter("embedding.weight")
            placed = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None))
            found[name] = local_of(operation(placed)).detach().clone()
        return found

    lazy = nn.Parameter(
        distribute_tensor(
            lazy_model("TiedModel").get_parameter("embedding.weight"),
            mesh,
            [Shard(0)],
            src_data_rank=None,
        )
    )
    # Only looked at.
    assert lazy.shape == lazy.detach().size() == torch.zeros_like(lazy).shape
    assert lazy.is_floating_point()
    return {
        "eager": results(eager_model),
        "lazy": results(lazy_model),
        "still lazy": dormant.is_lazy(lazy),
    }
