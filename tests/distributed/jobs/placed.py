"""DTensors: `distribute_tensor`, `distribute_module`, `parallelize_module`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import dormant
from jobs.held import lazy_names, report, train_step
from jobs.models import eager_model, lazy_model

PLACEMENTS: dict[str, Placement] = {
    "Shard(0)": Shard(0),
    "Shard(1)": Shard(1),
    "Replicate()": Replicate(),
}


def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def tensor(placement: str, source: int | None) -> dict[str, Any]:
    """Distributes one lazy parameter and materializes the DTensor itself."""
    whole = lazy_model("TiedModel").get_parameter("embedding.weight")
    placed = distribute_tensor(whole, _mesh(), [PLACEMENTS[placement]], src_data_rank=source)
    lazy = dormant.is_lazy(placed)
    dormant.materialize(placed)
    return {
        "lazy before": lazy,
        "whole still lazy": dormant.is_lazy(whole),
        "lazy after": dormant.is_lazy(placed),
        "local": placed.to_local().detach().clone(),
        "gathered": placed.full_tensor().detach().clone(),
    }


def state() -> dict[str, Any]:
    """Materializes a mapping of DTensors, and has an optimizer step over them."""
    model = lazy_model("TwoLayers")
    mesh = _mesh()
    placed = {
        name: nn.Parameter(distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None))
        for name, value in model.named_parameters()
    }
    optimizer = torch.optim.SGD(placed.values(), lr=0.5)
    dormant.materialize(placed)
    for parameter in placed.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: value.full_tensor().detach() for name, value in placed.items()}


def module(source: int | None) -> dict[str, Any]:
    """`distribute_module` with a partition function of the user's."""

    def partition(_: str, part: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in list(part.named_parameters(recurse=False)):
            placement = Shard(1) if parameter.dim() == 2 else Replicate()
            placed = distribute_tensor(parameter, mesh, [placement], src_data_rank=source)
            part.register_parameter(name, nn.Parameter(placed))

    model = distribute_module(lazy_model("TwoLayers"), _mesh(), partition)
    lazy = lazy_names(model)
    dormant.materialize(model)
    return report(model, lazy)


def _parallelize(model: nn.Module, mesh: DeviceMesh, source: int | None) -> nn.Module:
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    return parallelize_module(model, mesh, plan, src_data_rank=source)  # type: ignore[arg-type]


def parallel(source: int | None) -> dict[str, Any]:
    """Tensor parallelism: a column-wise layer followed by a row-wise one."""
    mesh = _mesh()
    model = _parallelize(lazy_model("TwoLayers"), mesh, source)
    lazy = lazy_names(model)
    dormant.materialize(model)
    eager = _parallelize(eager_model("TwoLayers"), mesh, source)
    inputs = torch.linspace(-1, 1, 24).view(3, 8)
    return report(model, lazy) | {
        "placements": {
            name: str(parameter.placements[0])
            for name, parameter in model.named_parameters()
            if isinstance(parameter, DTensor)
        },
        "step": train_step(model, inputs),
        "eager step": train_step(eager, inputs),
    }


def parallel_before_a_plain_layer() -> list[torch.Tensor]:
    """Two steps of a model that nobody materialized: its last layer gets what is still awaited."""
    outputs = []
    for build in (lazy_model, eager_model):
        model = nn.Sequential(*(build("TwoLayers") for _ in range(2)))
        _parallelize(model[0], _mesh(), None)
        outputs.append(train_step(model, torch.linspace(-1, 1, 24).view(3, 8))["output"])
        assert not any(dormant.is_lazy(each) for each in model.parameters())
    return outputs
