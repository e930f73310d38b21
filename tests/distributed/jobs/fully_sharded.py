"""FSDP2: `fully_shard` over a mesh of one or two dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dormant
from jobs.held import lazy_names, local_tensors, report, train_step
from jobs.models import ROWS, eager_model, lazy_model


def _mesh(sizes: list[int]) -> DeviceMesh:
    names = ("replicate", "shard")[-len(sizes) :]
    return init_device_mesh("cpu", tuple(sizes), mesh_dim_names=names)


def _shard(model: nn.Module, mesh: DeviceMesh, dim: int) -> None:
    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(dim if parameter.dim() > dim else 0)

    chosen: Any = placement if dim else None
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh, shard_placement_fn=chosen)
    fully_shard(model, mesh=mesh, shard_placement_fn=chosen)


def shard(mesh: list[int], dim: int = 0, dtype: str = "float32") -> dict[str, Any]:
    """Shards a lazy model, materializes it, and trains it beside an eager one."""
    over = _mesh(mesh)
    model = lazy_model("TiedModel").to(getattr(torch, dtype))
    _shard(model, over, dim)
    lazy = lazy_names(model)
    dormant.materialize(model)
    eager = eager_model("TiedModel").to(getattr(torch, dtype))
    _shard(eager, over, dim)
    tokens = torch.arange(ROWS)
    return report(model, lazy) | {
        "step": train_step(model, tokens),
        "eager step": train_step(eager, tokens),
    }


def _listed(found: dormant.Summary | dormant.Report) -> list[tuple[tuple[str, ...], int]]:
    return [(tensor.names, tensor.nbytes) for tensor in found.tensors]


def shard_and_report() -> dict[str, Any]:
    """What summary, report of `materialize` and report of `load` list of a sharded model."""
    mesh = _mesh([torch.distributed.get_world_size()])
    eager = eager_model("TiedModel")
    _shard(eager, mesh, 0)
    parts = {name: part.nbytes for name, part in local_tensors(eager).items()}
    model = lazy_model("TiedModel")
    _shard(model, mesh, 0)
    before = dormant.summary(model)
    report = dormant.materialize(model)
    after = dormant.summary(model)
    train_step(model, torch.arange(ROWS))
    trained = dormant.summary(model)
    loaded = lazy_model("TiedModel")
    _shard(loaded, mesh, 0)
    load = dormant.load(loaded, eager_model("TiedModel").state_dict())
    return {
        "parts": parts,
        "listed": {
            "before": _listed(before),
            "report": _listed(report),
            "after": _listed(after),
            "load": _listed(load),
        },
        "nbytes": [report.nbytes, before.bytes_after, after.bytes_now, load.nbytes],
        "trained": _listed(trained),
    }


def shard_tensor_parallel() -> dict[str, Any]:
    """Tensor parallelism in each row of a 2x2 mesh, FSDP2 across the rows."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def compose(model: nn.Module) -> nn.Module:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, mesh["tensor"], plan, src_data_rank=None)  # type: ignore[arg-type]
        return fully_shard(model, mesh=mesh["data"])

    model = compose(lazy_model("TwoLayers"))
    lazy = lazy_names(model)
    dormant.materialize(model)
    eager = compose(eager_model("TwoLayers"))
    inputs = torch.linspace(-1, 1, 24).view(3, 8)
    return report(model, lazy) | {
        "eager local": local_tensors(eager),
        "step": train_step(model, inputs),
        "eager step": train_step(eager, inputs),
    }


def shard_without_materializing() -> dict[str, Any]:
    """Runs a lazy sharded model at once: whatever it reads comes to life by itself."""
    mesh = _mesh([torch.distributed.get_world_size()])
    model, eager = lazy_model("TiedModel"), eager_model("TiedModel")
    _shard(model, mesh, 0)
    _shard(eager, mesh, 0)
    tokens = torch.arange(ROWS)
    return {"step": train_step(model, tokens), "eager step": train_step(eager, tokens)}
