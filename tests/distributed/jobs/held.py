"""What a rank reports about the tensors that it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

import dormant
from dormant import _C
from dormant.tensors.identity import is_wrapper
from dormant.tensors.reachable import reachable_tensors


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that has the memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()


def lazy_names(model: nn.Module) -> list[str]:
    """Parameters and buffers whose local tensors have no memory."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if dormant.is_lazy(local_of(tensor))]


def keyed_names(model: nn.Module) -> list[str]:
    """Tensors anywhere under the model that still go through the dispatch key."""
    return [
        name
        for name, tensor in reachable_tensors(model)
        if not is_wrapper(tensor) and _C.carries_key(tensor)
    ]


def local_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the local parts of all parameters and buffers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: local_of(tensor).detach().clone() for name, tensor in tensors}


def gathered_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, whole; every rank has to call it."""
    # A quantized layer that was divided has a DTensor in its state only.
    state = model.state_dict()
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        whole = state.get(name, tensor)
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
            whole = whole.reshape(-1, 1) if tensor.dtype == torch.uint8 else whole
        found[name] = whole.detach().clone()
    return found


def train_step(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of a forward pass and the local gradients of a backward pass."""
    output = model(inputs)
    if isinstance(output, DTensor):
        output = output.full_tensor()
    output.square().sum().backward()
    gradients: dict[str, torch.Tensor] = {
        f"{name}.grad": local_of(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    if isinstance(output, AsyncCollectiveTensor):
        output = output.wait()
    return {"output": output.detach(), **gradients}


def report(model: nn.Module, lazy_before: list[str]) -> dict[str, Any]:
    """Everything about a materialized model that tests look at."""
    return {
        "lazy before": lazy_before,
        "lazy after": lazy_names(model),
        "keyed after": keyed_names(model),
        "local": local_tensors(model),
        "gathered": gathered_tensors(model),
    }
