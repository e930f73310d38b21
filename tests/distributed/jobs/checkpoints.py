"""Folders of torch.distributed.checkpoint, written and read by ranks that divide models anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dormant
from dormant import _C
from jobs.held import lazy_names, report
from jobs.models import eager_model, lazy_model


class Wide(nn.Module):
    """Parameters of some hundred KiB: what is read besides them does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(256, 512)
        self.down = nn.Linear(512, 256, bias=False)


def _build(kind: str, *, lazy: bool) -> nn.Module:
    if kind != "Wide":
        return lazy_model(kind) if lazy else eager_model(kind)
    torch.manual_seed(5)
    if not lazy:
        return Wide()
    with dormant.lazy_init():
        return Wide()


def _fully_shard(model: nn.Module, dim: int = 0) -> None:
    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(dim if parameter.dim() > dim else 0)

    fully_shard(model, shard_placement_fn=placement)


def _replicas(model: nn.Module) -> None:
    shape = (2, dist.get_world_size() // 2) if dist.get_world_size() > 1 else (1, 1)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)


def _two_dimensions(model: nn.Module) -> None:
    shape = (2, dist.get_world_size() // 2) if dist.get_world_size() > 1 else (1, 1)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan, src_data_rank=None)  # type: ignore[arg-type]
    fully_shard(model, mesh=mesh["data"])


WAYS: dict[str, Callable[[nn.Module], None]] = {
    "rows": _fully_shard,
    "columns": lambda model: _fully_shard(model, 1),
    "replicas": _replicas,
    "two dimensions": _two_dimensions,
    "whole": lambda model: None,
}


def _read_bytes() -> int:
    """Bytes that this process asked the system for."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    raise AssertionError("no rchar")


def save(kind: str, way: str, path: str, *, lazy: bool = True) -> dict[str, Any]:
    """Saves a sharded model with dormant."""
    model = _build(kind, lazy=lazy)
    WAYS[way](model)
    before = lazy_names(model)
    saved = dormant.save(model, path, format="dcp", memory_budget="64MiB")
    return {
        "same": before == lazy_names(model),
        "lazy": len(before),
        "nbytes": sum(tensor.nbytes for tensor in saved.tensors),
    }


def save_by_torch(kind: str, way: str, path: str) -> None:
    """Saves an eager model, an optimizer that took a step, and a number with torch."""
    model = _build(kind, lazy=False)
    WAYS[way](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optim": get_optimizer_state_dict(model, optimizer),
        "step": 7,
    }
    dcp.save(state, checkpoint_id=path)


def save_safetensors(kind: str, way: str, path: str) -> None:
    """Saves an eager model with torch, each rank its part in safetensors."""
    model = _build(kind, lazy=False)
    WAYS[way](model)
    writer = dcp.HuggingFaceStorageWriter(path, save_distributed=True)
    dcp.save(dict(model.state_dict()), storage_writer=writer)


def load(kind: str, way: str, path: str) -> dict[str, Any]:
    """Loads a folder into a lazy sharded model with dormant."""
    model = _build(kind, lazy=True)
    WAYS[way](model)
    lazy = lazy_names(model)
    before = _read_bytes()
    dormant.load(model, path, progress=False)
    return {"read": _read_bytes() - before, **report(model, lazy)}


def load_by_torch(kind: str, way: str, path: str) -> dict[str, Any]:
    """Loads a folder into an eager sharded model with torch."""
    model = _build(kind, lazy=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    WAYS[way](model)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=path)
    model.load_state_dict(state)
    return report(model, [])


def fail(kind: str, path: str, failing: int) -> dict[str, Any]:
    """One rank cannot write: what each rank raises."""
    model = _build(kind, lazy=True)
    _fully_shard(model)
    if dist.get_rank() == failing:
        _C.set_faults("write:2")
    try:
        dormant.save(model, path, format="dcp", progress=False)
    except OSError as error:
        return {"errno": error.errno, "message": str(error), "lazy": len(lazy_names(model))}
    finally:
        _C.set_faults("")
    return {"errno": None, "message": "", "lazy": 0}
