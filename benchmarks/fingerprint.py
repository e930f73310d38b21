"""What a model consists of, in a form that processes can compare."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under every name they have, ties included."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def geometry(model: torch.nn.Module) -> dict[str, str]:
    """Shape, dtype and requires_grad by name."""
    return {
        name: f"{tuple(t.shape)} {t.dtype} {t.requires_grad}"
        for name, t in named_tensors(model).items()
    }


def bits(tensor: torch.Tensor) -> str:
    """A digest of every bit of the tensor's elements, in their logical order."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()


def values(model: torch.nn.Module) -> dict[str, str]:
    """`bits` by name."""
    return {name: bits(tensor) for name, tensor in named_tensors(model).items()}


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """The names that only one of them has, or whose entries differ."""
    names = expected | got
    return [name for name in names if expected.get(name) != got.get(name)]
