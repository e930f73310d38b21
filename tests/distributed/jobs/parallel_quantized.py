"""Quantized models whose layers parallelize_module divides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import (
    DTensor,
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
from jobs.models import SEED
from jobs.quantized import in_order, scheme_of, whole


class Parallel(nn.Module):
    """Layers whose parts end where nested scales do, and others whose parts do not."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(128, 128, bias=False)
        self.up = nn.Linear(128, 512)
        self.down = nn.Linear(512, 64)
        self.head = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.down(torch.relu(self.up(self.gate(x)))))
        return out


DIVIDED = {"gate": 0, "up": 0, "down": 1}


def plan(columns: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gate": ColwiseParallel(output_layouts=Replicate()),
        "up": ColwiseParallel(),
    }
    if columns:
        found["down"] = RowwiseParallel()
    else:
        found["up"] = ColwiseParallel(output_layouts=Replicate())
    return found


def elements(layer: Any) -> torch.Tensor:
    """The matrix that the packed weight of a layer stands for."""
    if "quant_state" in vars(layer):
        weight = layer.weight
        packed = weight.full_tensor() if isinstance(weight, DTensor) else weight.data
        matrix: torch.Tensor = bitsandbytes.functional.dequantize_4bit(packed, layer.quant_state)
        return matrix.clone()
    scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
    codes = layer.weight.full_tensor() if isinstance(layer.weight, DTensor) else layer.weight.data
    return codes.float() * scales[:, None]


def outputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Output, and the gradients of input and biases; in evaluation, too, a second time."""
    found: dict[str, torch.Tensor] = {}
    for _ in range(2):
        model.zero_grad()
        inputs = torch.randn(3, 128, generator=torch.Generator().manual_seed(3)).requires_grad_()
        output = model(inputs)
        output.square().sum().backward()
        assert inputs.grad is not None
        found = {"output": output.detach().clone(), "gradient": inputs.grad}
        for name, parameter in model.named_parameters():
            if "bias" in name and parameter.grad is not None:
                grad = parameter.grad
                found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()
    model.eval()
    with torch.no_grad():
        found["evaluated"] = model(inputs.detach()).clone()
    model.train()
    return found


def divided(model: Any, kind: str, shards: int = 1, **options: Any) -> Any:
    """Parallelized and, if there are several shards, sharded over the other dimension."""
    sizes = (shards, dist.get_world_size() // shards)
    meshes = init_device_mesh("cpu", sizes, mesh_dim_names=("shards", "parts"))
    parallelize_module(model, meshes["parts"], plan(kind != "int8"), **options)
    if shards > 1:
        for layer in model.children():
            fully_shard(layer, mesh=meshes["shards"])
        fully_shard(model, mesh=meshes["shards"])
    return model


def lazy(kind: Any, *, seed: int = SEED) -> Any:
    """`Parallel`, quantized."""
    torch.manual_seed(seed)
    with dormant.lazy_init():
        model = Parallel()
    dormant.quantize(model, kind, skip=["head"])
    return model


def run(
    order: str, path: str, kind: str, block_size: int, nested: bool, storage: str, shards: int = 1
) -> Any:
    """Quantizes, divides and loads in some order; says what this rank holds and computes."""
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model: Any = Parallel()
    scheme = scheme_of(kind, block_size, nested, storage)
    loaded = False
    for step, _, report in in_order(
        order, model, scheme, path, lambda model: divided(model, kind, shards, src_data_rank=None)
    ):
        loaded = loaded or report is not None
        made = [
            not dormant.is_lazy(tensor)
            for name, tensor in model.state_dict().items()
            if name.endswith((".weight", ".absmax", ".SCB"))
        ]
        assert made == [loaded] * len(made), (step, made)
    assert not dormant.is_lazy(model)
    return {
        "elements": {name: elements(model.get_submodule(name)) for name in DIVIDED},
        "state": whole(model.state_dict()),
        "bytes": {name: _own_bytes(model.get_submodule(name).weight) for name in DIVIDED},
        "outputs": outputs_of(model),
        "read": report.read_bytes,
        "size": Path(path).stat().st_size,
    }


def _own_bytes(weight: torch.Tensor) -> int:
    return weight.to_local().nbytes if isinstance(weight, DTensor) else weight.nbytes


def saved(kind: str, folder: str, shards: int) -> dict[str, Any]:
    """What comes back from folders that torch and dormant have saved, and from a whole model's."""
    model = divided(lazy(kind), kind, shards)
    dormant.save({"model": model}, f"{folder}/lazy", format="dcp")
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    dcp.save({"model": model.state_dict()}, checkpoint_id=f"{folder}/torch")
    expected = outputs_of(model)
    for name in ("lazy", "torch", "whole"):
        other = divided(lazy(kind, seed=1), kind, shards)
        checkpoint = f"{folder}/whole.safetensors" if name == "whole" else f"{folder}/{name}"
        report = dormant.load(other, checkpoint, share_reads=name == "whole")
        assert report.count("initialized") == 0
        for key, tensor in outputs_of(other).items():
            assert torch.equal(tensor, expected[key]), (name, key)
    alone = lazy(kind, seed=1)
    dormant.load(alone, f"{folder}/torch")
    return {"elements": {name: elements(alone.get_submodule(name)) for name in DIVIDED}}


def others(kind: str, path: str) -> dict[str, Any]:
    """Copies, a model that nobody materialized, and one whose biases torch sends from rank 0."""
    model = divided(lazy(kind), kind)
    copied = copy.deepcopy(model)
    found = {"sent": outputs_of(divided(lazy(kind), kind))}
    dormant.load(copied, path)
    assert dormant.is_lazy(model)
    found["copied"] = outputs_of(copied)
    found["not materialized"] = outputs_of(divided(lazy(kind), kind, src_data_rank=None))
    dormant.materialize(model)
    found["real copy"] = outputs_of(copy.deepcopy(model))
    found["materialized"] = outputs_of(model)
    return found


def refusals() -> list[str]:
    """Messages; nothing has changed after them."""
    mesh = init_device_mesh("cpu", (2,))
    with dormant.lazy_init():
        narrow: Any = nn.Sequential(nn.Linear(96, 10), nn.Linear(64, 63))
    eight = copy.deepcopy(narrow)
    dormant.quantize(narrow, "nf4", skip=())
    dormant.quantize(eight, "int8", skip=())
    wide = lazy("nf4")
    again = divided(lazy("nf4"), "nf4")
    flat = parallelize_module(lazy(scheme_of("nf4", 64, True, "float32")), mesh, plan(True))
    by_hand = lazy("nf4")
    distribute_module(by_hand.up, mesh, _cut_rows)
    cpu = torch.device("cpu")
    flat.gate = FullyShardedDataParallel(flat.gate, device_id=cpu, use_orig_params=True)

    def parallelize(model: Any, name: str, style: Any) -> Callable[[], object]:
        return lambda: parallelize_module(model, mesh, {name: style})

    calls = [
        parallelize(narrow, "0", ColwiseParallel()),
        parallelize(narrow, "0", RowwiseParallel()),
        parallelize(eight, "1", ColwiseParallel()),
        parallelize(eight, "0", RowwiseParallel()),
        parallelize(again, "up", ColwiseParallel()),
        lambda: dormant.materialize(flat),
        lambda: dormant.materialize(by_hand),
        lambda: wide.up.forward(torch.ones(1, 128)),
    ]
    divided(wide, "nf4")
    messages = []
    for call in calls:
        try:
            call()
        except (ValueError, NotImplementedError, RuntimeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        else:
            messages.append("nothing")
    assert type(narrow[0]) is bitsandbytes.nn.Linear4bit
    assert dormant.is_lazy(narrow[0].weight)
    dormant.materialize(narrow)
    narrow[0](torch.ones(1, 96))
    return messages


def _cut_rows(name: str, module: nn.Module, mesh: Any) -> None:
    for key, parameter in list(module._parameters.items()):
        if parameter is not None:
            part = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(key, nn.Parameter(part, requires_grad=False))
