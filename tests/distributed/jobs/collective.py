"""Collectives called on lazy tensors, each beside the same call on real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import dormant


def _tensors(count: int) -> list[torch.Tensor]:
    """Different on every rank, with a view among them."""
    torch.manual_seed(100 + dist.get_rank())
    base = torch.empty(count + 1, 6).normal_()
    return [base[i + 1] for i in range(count)]


def _broadcast(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    dist.broadcast(tensor, src=world - 1)
    return [tensor]


def _all_reduce(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    work = dist.all_reduce(tensor, async_op=True)
    work.wait()
    return [tensor]


def _all_reduce_coalesced(world: int) -> list[torch.Tensor]:
    tensors = _tensors(3)
    dist.all_reduce_coalesced(tensors)
    return tensors


def _reduce(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    dist.reduce(tensor, dst=0)
    return [tensor] if dist.get_rank() == 0 else []


def _all_gather(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    outputs = [torch.zeros(6) for _ in range(world)]
    dist.all_gather(outputs, tensor)
    return outputs


def _all_gather_into_tensor(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    output = torch.zeros(6 * world)
    dist.all_gather_into_tensor(output, tensor)
    return [output]


def _gather(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    outputs = [torch.zeros(6) for _ in range(world)] if dist.get_rank() == 0 else None
    dist.gather(tensor, outputs, dst=0)
    return outputs or []


def _scatter(world: int) -> list[torch.Tensor]:
    output = torch.zeros(6)
    dist.scatter(output, _tensors(world) if dist.get_rank() == 0 else None, src=0)
    return [output]


def _reduce_scatter(world: int) -> list[torch.Tensor]:
    output = torch.zeros(6)
    dist.reduce_scatter(output, _tensors(world))
    return [output]


def _reduce_scatter_tensor(world: int) -> list[torch.Tensor]:
    output = torch.zeros(6)
    dist.reduce_scatter_tensor(output, torch.cat(_tensors(world)))
    return [output]


def _all_to_all(world: int) -> list[torch.Tensor]:
    output = torch.zeros(world * 6)
    dist.all_to_all_single(output, torch.cat(_tensors(world)))
    return [output]


def _point_to_point(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    received, rank = torch.zeros(6), dist.get_rank()
    works = [
        dist.isend(tensor, (rank + 1) % world),
        dist.irecv(received, (rank - 1) % world),
    ]
    for work in works:
        if work is not None:
            work.wait()
    return [received]


def _functional_all_reduce(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    return [functional.wait_tensor(functional.all_reduce(tensor, "sum", dist.group.WORLD))]


def _functional_all_gather(world: int) -> list[torch.Tensor]:
    (tensor,) = _tensors(1)
    gathered = functional.all_gather_tensor(tensor, 0, dist.group.WORLD)
    return [functional.wait_tensor(gathered)]


def _functional_reduce_scatter(world: int) -> list[torch.Tensor]:
    whole = torch.cat(_tensors(world))
    part = functional.reduce_scatter_tensor(whole, "sum", 0, dist.group.WORLD)
    return [functional.wait_tensor(part)]


def _broadcast_object(world: int) -> list[torch.Tensor]:
    objects: list[Any] = [_tensors(1)[0] if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(objects, src=0)
    return [objects[0]]


CALLS: dict[str, Callable[[int], list[torch.Tensor]]] = {
    call.__name__.removeprefix("_"): call
    for call in (
        _broadcast,
        _all_reduce,
        _all_reduce_coalesced,
        _reduce,
        _all_gather,
        _all_gather_into_tensor,
        _gather,
        _scatter,
        _reduce_scatter,
        _reduce_scatter_tensor,
        _all_to_all,
        _point_to_point,
        _functional_all_reduce,
        _functional_all_gather,
        _functional_reduce_scatter,
        _broadcast_object,
    )
}


def call(name: str, lazy_ranks: list[int]) -> dict[str, Any]:
    """Calls one collective, with real tensors, then with lazy ones on the ranks named."""
    world = dist.get_world_size()
    eager = [tensor.clone() for tensor in CALLS[name](world)]
    if dist.get_rank() in lazy_ranks:
        with dormant.lazy_init():
            assert all(dormant.is_lazy(tensor) for tensor in _tensors(1))
            outputs = CALLS[name](world)
    else:
        outputs = CALLS[name](world)
    dormant.materialize(outputs)
    return {"eager": eager, "lazy": [tensor.clone() for tensor in outputs]}


def call_outside(name: str) -> dict[str, Any]:
    """Calls `all_reduce` or `broadcast` after the context, on a parameter that is still lazy."""
    torch.manual_seed(100 + dist.get_rank())
    eager = torch.nn.Linear(5, 5).weight.detach()
    torch.manual_seed(100 + dist.get_rank())
    with dormant.lazy_init():
        weight = torch.nn.Linear(5, 5).weight.detach()
    before = dormant.is_lazy(weight)
    for tensor in (eager, weight):
        getattr(dist, name)(tensor, *([0] if name == "broadcast" else []))
    return {"lazy before": before, "eager": eager, "weight": weight.clone()}
