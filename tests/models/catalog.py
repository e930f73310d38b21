"""One row of a catalog: a published architecture at a size that builds in a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Model:
    """A named builder; two calls under one seed give two models of the same bits.

    Args:
        name: The architecture, unique within its library.
        build: Constructs the model from scratch, on the CPU, without the network.
    """

    name: str
    build: Callable[[], torch.nn.Module]


def transformers_model(
    name: str, config: str, options: Mapping[str, Any], *, label: str | None = None
) -> Model:
    """A row that builds ``transformers.<name>(transformers.<config>(**options))``.

    Args:
        name: The model class.
        config: The configuration class.
        options: Its keyword arguments; nested configurations as dictionaries.
        label: The row's name where one class stands for two architectures.
    """

    def build() -> torch.nn.Module:
        # Looked up here, so that collecting the tests doesn't import every model's module.
        import transformers

        model: torch.nn.Module = getattr(transformers, name)(
            getattr(transformers, config)(**options)
        )
        return model

    return Model(label or name, build)
