"""`load` against eager construction and `load_state_dict`: the same model, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

import dormant
from compare import assert_same_bits, geometry, storage_key
from reachable import holdings

Build: TypeAlias = Callable[[], nn.Module]
State: TypeAlias = Mapping[str, torch.Tensor]
Saver: TypeAlias = Callable[[State], Any]

SEED = 8
_GEOMETRY = (
    "class",
    "dtype",
    "device",
    "requires_grad",
    "is_leaf",
    "shape",
    "strides",
    "storage_offset",
    "storage bytes",
    "python attributes",
)


def eager(build: Build) -> nn.Module:
    torch.manual_seed(SEED)
    return build()


def lazy(build: Build) -> nn.Module:
    """The same model without memory."""
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        return build()


def state_of(build: Build, seed: int = 77) -> dict[str, torch.Tensor]:
    """The state of a model of other random values, buffers and counters included."""
    torch.manual_seed(seed)
    model = build()
    state = {}
    values: dict[int, torch.Tensor] = {}  # by storage: names of one tensor have the same values
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            value = (
                torch.randn_like(tensor)
                if tensor.is_floating_point()
                else torch.full_like(tensor, 41)
            )
            tensor = values.setdefault(storage_key(tensor), value)
        state[name] = tensor
    return state


def eager_loaded(build: Build, state: Mapping[str, Any], *, strict: bool = True) -> nn.Module:
    """What plain PyTorch makes of the same seed and state."""
    model = eager(build)
    model.load_state_dict(dict(state), strict=strict)
    return model


def assert_same_model(expected: nn.Module, got: nn.Module, *, memory: bool = True) -> None:
    """Fails unless `got` is real and equals `expected` in every tensor it holds.

    Args:
        expected: the eager model.
        got: the loaded one.
        memory: whether strides and storages have to be the same, too.
    """
    one, other = holdings(expected).tensors, holdings(got).tensors
    assert one
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert not dormant.is_lazy(other[name]), f"{name} is still lazy"
        assert not dormant._C.carries_key(other[name]), f"{name} carries the dispatch key"
        assert_same_bits(tensor, other[name], name)
        left, right = geometry(tensor), geometry(other[name])
        for fact in _GEOMETRY:
            if memory or not fact.startswith("st"):
                assert left[fact] == right[fact], f"{name}: {fact}"
    assert _ties(one) == _ties(other)


def _ties(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(storage_key(t), name) for name, t in tensors.items()}


def fingerprint(model: nn.Module) -> dict[str, tuple[object, ...]]:
    """What a failed load must leave as it was: objects, storages, histories, versions."""
    return {
        name: (
            id(tensor),
            storage_key(tensor),
            dormant.is_lazy(tensor),
            tuple(dormant._C.operators(tensor)) if dormant.is_lazy(tensor) else None,
            tensor._version,
            tensor.dtype,
            tensor.requires_grad,
        )
        for name, tensor in holdings(model).tensors.items()
    }
