"""Quantized models whose packed bytes are divided among the ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 (imported before the ranks are forked)
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

import dormant
from jobs.models import SEED, Layered

Model = Callable[[], nn.Module]


def _fsdp2(model: Any, mesh: Any = None) -> nn.Module:
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _hsdp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("r", "s"))
    return _fsdp2(model, mesh)


def _fsdp1(model: Any) -> nn.Module:
    def wrap(module: nn.Module) -> nn.Module:
        cpu = torch.device("cpu")
        return FullyShardedDataParallel(module, device_id=cpu, use_orig_params=True)

    for i, layer in enumerate(model.layers):
        model.layers[i] = wrap(layer)
    return wrap(model)


SHARD: dict[str, Callable[[nn.Module], nn.Module]] = {
    "FSDP2": _fsdp2,
    "HSDP": _hsdp,
    "FSDP1": _fsdp1,
}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of every quantized layer all tensors of its state."""
    found = {}
    for name, module in model.named_modules():
        state = vars(module).get("quant_state")
        if state is not None:
            name = name.replace("._fsdp_wrapped_module", "")
            name = name.removeprefix("_fsdp_wrapped_module.")
            found[f"{name}.absmax"] = state.absmax
            if state.nested:
                found[f"{name}.nested"] = state.state2.absmax
                found[f"{name}.offset"] = state.offset
        if "state" in vars(module):
            weight: Any = module._parameters["weight"]
            scales = module.state.SCB
            found[f"{name}.SCB"] = weight.SCB if scales is None else scales
    return found


def outputs_of(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What it computes, and the gradient of its input; twice, the second time is the same."""
    found = []
    for _ in range(2):
        inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        output = model(inputs)
        output.square().sum().backward()
        assert inputs.grad is not None
        found.append((output.detach().clone(), inputs.grad))
    assert all(map(torch.equal, found[0], found[1]))
    return found[0]


def _parts(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.to_local().detach().clone()
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor)
    }


def scheme_of(kind: str, block_size: int, nested: bool, storage: str) -> Any:
    if kind == "int8":
        return kind
    return dormant.FourBit(
        kind=kind,  # type: ignore[arg-type]
        block_size=block_size,
        nested=nested,
        storage_dtype=storage,  # type: ignore[arg-type]
    )


# In every one that makes sense.
ORDERS = [
    "quantize, divide, materialize",
    "quantize, load lazily, divide, materialize",
    "load lazily, quantize, divide, materialize",
    "quantize, divide, load",
    "quantize, divide, load lazily, materialize",
    "quantize, divide, materialize, load",
    "quantize, divide, load, load",
]


def in_order(
    order: str,
    model: Any,
    scheme: Any,
    path: str,
    divide: Callable[[Any], Any],
    *,
    skip: Any = ("head",),
) -> Iterator[tuple[str, Any, Any]]:
    """Takes the steps of `order`; yields each with the model and the report, if there is one."""
    for step in order.split(", "):
        report = None
        if step == "quantize":
            dormant.quantize(model, scheme, skip=skip)
        elif step == "load lazily":
            dormant.load(model, path, materialize=False)
        elif step == "load":
            report = dormant.load(model, path)
        elif step == "divide":
            model = divide(model)
        else:
            assert step == "materialize"
            report = dormant.materialize(model)
        yield step, model, report


def run(
    way: str, order: str, path: str, kind: str, block_size: int, nested: bool, storage: str
) -> dict[str, Any]:
    """Quantizes, shards and loads in some order; says what this rank holds and computes."""
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model: Any = Layered()
    scheme = scheme_of(kind, block_size, nested, storage)
    *_, (_, model, report) = in_order(order, model, scheme, path, SHARD[way])
    found = statistics(model)
    assert not dormant.is_lazy(model)
    read = {entry.names[0]: entry.origin for entry in report.tensors}
    parts = _parts(model)
    output, gradient = outputs_of(model)
    return {
        "statistics": {name: tensor.clone() for name, tensor in found.items()},
        "parts": parts,
        "output": output,
        "gradient": gradient,
        "origins": read,
        "read": report.read_bytes,
        "size": Path(path).stat().st_size,
        "process": os.getpid(),
    }


class Adapter(nn.Module):
    """A layer and a low-rank change of it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.up(self.down(x))
        return out


def add_adapters(model: Any) -> None:
    """Only these are trained."""
    torch.manual_seed(5)
    model.requires_grad_(False)
    for i, layer in enumerate(model.layers):
        model.layers[i] = Adapter(layer)


def trained(model: nn.Module) -> torch.Tensor:
    """What the model computes after three steps."""
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(adapters, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    output: torch.Tensor = model(inputs)
    return output.detach()


def _lazy(kind: Any, *, adapters: bool = False, **policy: Any) -> Any:
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model: Any = Layered()
    dormant.quantize(model, kind, skip=["head"])
    if adapters:
        with dormant.lazy_init():
            add_adapters(model)
    for layer in model.layers:
        fully_shard(layer, **policy)
    return fully_shard(model, **policy)


def train(kind: str) -> torch.Tensor:
    """LoRA of a quantized and sharded model."""
    model = _lazy(kind, adapters=True)
    dormant.materialize(model)
    return trained(model)


def policies(kind: str) -> dict[str, torch.Tensor]:
    """Outputs under the policies that fully_shard has."""
    ways: dict[str, dict[str, Any]] = {
        "resharded": {"reshard_after_forward": True},
        "kept": {"reshard_after_forward": False},
        "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
        "mixed": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
    }
    found = {}
    for name, policy in ways.items():
        model = _lazy(kind, **policy)
        dormant.materialize(model)
        found[name] = outputs_of(model)[0]
    return found


def whole(state: Any) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in state.items()
    }


def states(kind: str, folder: str) -> dict[str, Any]:
    """State dicts, and what comes back from folders that torch and dormant have saved."""
    model = _lazy(kind)
    lazy_names = list(model.state_dict())
    dormant.save({"model": model}, f"{folder}/lazy", format="dcp")
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    dcp.save({"model": model.state_dict()}, checkpoint_id=f"{folder}/torch")
    found: dict[str, Any] = {
        "lazy names": lazy_names,
        "state": whole(model.state_dict()),
        "full": get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)),
    }
    for name in ("lazy", "torch"):
        torch.manual_seed(1)
        with dormant.lazy_init():
            other: Any = Layered()
        dormant.quantize(other, kind, skip=["head"])
        for layer in other.layers:
            fully_shard(layer)
        report = dormant.load(fully_shard(other), f"{folder}/{name}")
        assert report.count("initialized") == 0
        found[name] = outputs_of(other)[0]
        found[f"{name} state"] = whole(other.state_dict())
    return found
