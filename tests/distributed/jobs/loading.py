"""Checkpoints loaded into lazy models that were sharded before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dormant
from jobs.held import lazy_names, report
from jobs.models import lazy_model, mixtral


def _fully_shard(model: nn.Module, dim: int) -> None:
    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(dim if parameter.dim() > dim else 0)

    for block in model.get_submodule("blocks").children():
        fully_shard(block, shard_placement_fn=placement)
    fully_shard(model, shard_placement_fn=placement)


def _tensor_parallel(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh, plan, src_data_rank=None)  # type: ignore[arg-type]


def _columns(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def partition(_: str, part: nn.Module, __: Any) -> None:
        for name, parameter in list(part.named_parameters(recurse=False)):
            placement = Shard(1) if parameter.dim() == 2 else Shard(0)
            placed = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
            part.register_parameter(name, nn.Parameter(placed))

    distribute_module(model, mesh, partition)


WAYS: dict[str, Callable[[nn.Module], None]] = {
    "fully_shard": lambda model: _fully_shard(model, 0),
    "fully_shard by columns": lambda model: _fully_shard(model, 1),
    "parallelize_module": _tensor_parallel,
    "distribute_module": _columns,
}


def load(kind: str, way: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Shards a lazy model, loads a checkpoint, and says what this rank holds."""
    model = lazy_model(kind)
    WAYS[way](model)
    lazy = lazy_names(model)
    dormant.load(model, path, **options)
    return report(model, lazy)


def experts(path: str) -> dict[str, Any]:
    """A model of transformers whose file has the experts of a stack one by one."""
    with dormant.lazy_init():
        model: Any = mixtral()
    for part in (*model.model.layers, model.model, model):
        fully_shard(part)
    lazy = lazy_names(model)
    dormant.load(model, path, missing="error")
    return report(model, lazy)


def converted(kind: str, way: str, path: str, dtype: str) -> dict[str, Any]:
    """A load into another dtype, refused first, which leaves every shard as it was."""
    model = lazy_model(kind)
    WAYS[way](model)
    lazy = lazy_names(model)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "missing": "init"}
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    error = ""
    try:
        dormant.load(model, {"no": torch.ones(1)}, **options)
    except KeyError as caught:
        error = caught.args[0]
    same = before == {name: parameter.dtype for name, parameter in model.named_parameters()}
    still = lazy_names(model)
    dormant.load(model, path, **options)
    return {"error": error, "same": same, "still lazy": still, "lazy": lazy, **report(model, lazy)}


def deferred(kind: str, way: str, path: str) -> dict[str, Any]:
    """A load without materializing, then materialized."""
    model = lazy_model(kind)
    WAYS[way](model)
    lazy = lazy_names(model)
    dormant.load(model, path, materialize=False)
    still = lazy_names(model)
    dormant.materialize(model)
    return {"lazy": lazy, "still lazy": still, **report(model, lazy)}


def plain(kind: str, way: str, path: str) -> dict[str, Any]:
    """PyTorch's own load_state_dict, with the checkpoint as it is."""
    model = lazy_model(kind)
    WAYS[way](model)
    lazy = lazy_names(model)
    model.load_state_dict(dormant.open_checkpoint(path), strict=False)
    still = lazy_names(model)
    dormant.materialize(model)
    return {"lazy": lazy, "still lazy": still, **report(model, lazy)}


def state_dict_options(kind: str, way: str, path: str, whole: bool) -> dict[str, Any]:
    """PyTorch's `set_model_state_dict`: whole tensors, which it divides, or the rank's parts."""
    model = lazy_model(kind)
    WAYS[way](model)
    lazy = lazy_names(model)
    opened = dormant.open_checkpoint(path)
    state: dict[str, Any] = dict(opened)
    if not whole:
        for name, parameter in model.named_parameters():
            if isinstance(parameter, DTensor) and name in opened:
                state[name] = distribute_tensor(
                    opened[name], parameter.device_mesh, parameter.placements, src_data_rank=None
                )
    options = StateDictOptions(full_state_dict=whole, strict=False)
    set_model_state_dict(model, state, options=options)
    dormant.materialize(model)
    return report(model, lazy)


def refused(kind: str, way: str, path: str) -> dict[str, Any]:
    """A load that fails leaves every shard lazy, and the next one works."""
    model = lazy_model(kind)
    WAYS[way](model)
    lazy = lazy_names(model)
    error = ""
    try:
        dormant.load(model, path, missing="error")
    except KeyError as caught:
        error = caught.args[0]
    still = lazy_names(model)
    dormant.load(model, path)
    return {"error": error, "lazy": lazy, "still lazy": still, **report(model, lazy)}


def bytes_read(kind: str, way: str, path: str) -> dict[str, int]:
    """Bytes that read calls gave this process while it loaded, and those of its shards."""
    return _bytes_read(kind, way, lambda model: dormant.load(model, path, mmap="never"))


def bytes_read_by_plain(kind: str, way: str, path: str) -> dict[str, int]:
    """The same by PyTorch's own load_state_dict."""

    def load(model: nn.Module) -> None:
        model.load_state_dict(dormant.open_checkpoint(path))
        dormant.materialize(model, mmap="never")

    return _bytes_read(kind, way, load)


def _bytes_read(kind: str, way: str, load: Callable[[nn.Module], object]) -> dict[str, int]:
    model = lazy_model(kind)
    WAYS[way](model)
    before = characters_read()
    load(model)
    after = characters_read()
    with torch.no_grad():
        shards = report(model, [])["local"].values()
    return {"read": after - before, "shards": sum(shard.nbytes for shard in shards)}


def characters_read() -> int:
    """Bytes that read calls gave this process, from files only."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])
