"""Building by functions: dictionaries of parameters, ensembles, registries, lists of tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]


@idiom
def parameters_in_plain_nested_dictionaries() -> dict[str, Any]:
    """JAX-like: no modules, an initializer for each leaf, a generator split by seeds."""

    def dense(seed: int, rows: int, columns: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        return {"w": weight.requires_grad_(), "b": torch.zeros(rows, requires_grad=True)}

    seeds = torch.randint(0, 2**31, (3,))
    return {f"layer_{i}": dense(7 + i, 8, 4) for i in range(3)} | {"seeds": seeds}


@idiom
def an_ensemble_stacked_by_hand() -> dict[str, torch.Tensor]:
    models = [nn.Linear(3, 2) for _ in range(4)]
    with torch.no_grad():
        return {
            name: torch.stack([dict(model.named_parameters())[name] for model in models])
            for name in ("weight", "bias")
        }


@idiom
def initializers_mapped_over_an_ensemble() -> Tensors:
    def scaled(weight: torch.Tensor) -> torch.Tensor:
        return weight / weight.norm()

    return [torch.vmap(scaled)(torch.randn(4, 3, 2)), torch.vmap(torch.diag)(torch.rand(2, 3))]


@idiom
def tree_map_over_parameters() -> dict[str, Any]:
    tree = {"a": torch.randn(3), "b": [torch.rand(2), (torch.ones(2), None)]}
    moved = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(torch.bfloat16), tree)
    return {"tree": tree, "moved": moved}


def _registry() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "zeros": nn.init.zeros_,
        "he": functools.partial(nn.init.kaiming_normal_, mode="fan_out"),
    }


@idiom
def initializers_from_a_registry() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    for layer, name in zip(model, ("he", "zeros"), strict=True):
        _registry()[name](layer.weight)
    return model


@idiom
def foreach_operations_over_lists_of_parameters() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        parameters = list(model.parameters())
        torch._foreach_mul_(parameters, 0.5)
        torch._foreach_add_(parameters, [torch.ones_like(p) for p in parameters], alpha=0.1)
        torch._foreach_zero_([model[0].bias])
        model.norms = torch._foreach_norm(parameters)
        torch._foreach_lerp_(parameters, [torch.zeros_like(p) for p in parameters], 0.25)
        model.copies = torch._foreach_mul(parameters, 2.0)
    return model


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()
