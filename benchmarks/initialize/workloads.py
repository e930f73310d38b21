"""What is initialized: layers that draw from one distribution, and a whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.llama import llama


@dataclass(frozen=True)
class Workload:
    """A model, and the ways to build it that peers need.

    Attributes:
        make: builds it in whatever context the caller set up.
        reset: gives values to a model whose memory holds none.
        small: name of a small one of the same kind.
        layers: where it is a plain sequence of layers, their class and arguments.
    """

    make: Callable[[], torch.nn.Module]
    reset: Callable[[Any], object]
    small: str
    layers: tuple[tuple[type[torch.nn.Module], tuple[Any, ...]], ...] | None = None


def _layers(
    kind: type[torch.nn.Module], arguments: tuple[Any, ...], count: int, small: str
) -> Workload:
    layers = ((kind, arguments),) * count

    def make() -> torch.nn.Module:
        return torch.nn.Sequential(*(kind(*arguments) for kind, arguments in layers))

    return Workload(make, reset_layers, small, layers)


def reset_layers(model: torch.nn.Module) -> None:
    """Calls `reset_parameters` of every layer, in order."""
    for layer in model.children():
        layer.reset_parameters()  # type: ignore[operator]


def _llama(size: str) -> Workload:
    return Workload(lambda: llama(size), lambda model: model.init_weights(), "Llama tiny")


_LINEAR, _EMBEDDING = "2 Linear(256, 256)", "1 Embedding(1024, 100)"
WORKLOADS: dict[str, Workload] = {
    "8 Linear(4096, 4096): uniform_": _layers(torch.nn.Linear, (4096, 4096), 8, _LINEAR),
    "2 Embedding(65536, 1024): normal_": _layers(torch.nn.Embedding, (65536, 1024), 2, _EMBEDDING),
    "Llama 1.1B": _llama("1.1B"),
}
QUICK: dict[str, Workload] = {
    _LINEAR: _layers(torch.nn.Linear, (256, 256), 2, _LINEAR),
    _EMBEDDING: _layers(torch.nn.Embedding, (1024, 100), 1, _EMBEDDING),
    "Llama tiny": _llama("tiny"),
}


def workload(name: str) -> Workload:
    """The one of this name."""
    return {**WORKLOADS, **QUICK}[name]
