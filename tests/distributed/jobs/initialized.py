"""Models that are sharded first and initialized later, as training frameworks do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dormant
from jobs.held import gathered_tensors, keyed_names, lazy_names
from jobs.models import SEED


class Initialized(nn.Module):
    """Every initializer of torch.nn.init, and the methods that they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.rest = nn.ParameterList(nn.Parameter(torch.empty(11, 4)) for _ in range(10))

    def init_weights(self) -> None:
        nn.init.trunc_normal_(self.up.weight, std=0.02)
        nn.init.zeros_(self.up.bias)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        self.norm.reset_parameters()
        nn.init.normal_(self.rest[0], mean=0.5, std=2.0)
        nn.init.xavier_normal_(self.rest[1])
        nn.init.orthogonal_(self.rest[2])
        nn.init.trunc_normal_(self.rest[3], std=1.0, a=-0.5, b=0.5)
        nn.init.constant_(self.rest[4], 0.25)
        nn.init.eye_(self.rest[5])
        with torch.no_grad():
            self.rest[6].uniform_(-1, 1).mul_(0.5).add_(1)
            self.rest[7].data.normal_().clamp_(-1, 1).erfinv_()
            self.rest[8].bernoulli_(0.3)
            self.rest[9].fill_(2).div_(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.down(torch.relu(self.up(x))))
        return out


def _divide(model: Any, way: str) -> None:
    world = dist.get_world_size()
    if way == "tensors":
        mesh = init_device_mesh("cpu", (world,))
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, mesh, plan, src_data_rank=None)
        for i, parameter in enumerate(model.rest):
            part = distribute_tensor(parameter.data, mesh, [Shard(i % 2)], src_data_rank=None)
            model.rest[i] = nn.Parameter(part)
    elif way == "both":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, mesh["tp"], plan, src_data_rank=None)
        fully_shard(model, mesh=mesh["dp"])
    else:
        fully_shard(model.up)
        fully_shard(model)


def single(pattern: str) -> tuple[Any, torch.Tensor]:
    """The model in one process, and the generator's state then."""
    torch.manual_seed(SEED)
    if pattern == "meta":
        with torch.device("meta"):
            model = Initialized()
        model.to_empty(device="cpu")
    else:
        model = Initialized()
    model.init_weights()
    return model, torch.get_rng_state()


def run(way: str, pattern: str) -> dict[str, Any]:
    """Inside the context, as the code of a framework is."""
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        if pattern == "meta":
            with torch.device("meta"):
                model = Initialized()
            _divide(model, way)
            model.to_empty(device="cpu")
        else:
            model = Initialized()
            _divide(model, way)
        model.init_weights()
    state = torch.get_rng_state()
    lazy = lazy_names(model)
    report = dormant.materialize(model)
    return {
        "lazy": lazy,
        "keyed": keyed_names(model),
        "state": state,
        "bytes": report.nbytes,
        "gathered": gathered_tensors(model),
    }
