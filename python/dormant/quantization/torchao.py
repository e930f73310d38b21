"""Configuration objects of torchao, applied to one layer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def is_configuration(scheme: object) -> bool:
    """Whether `scheme` is a configuration object of torchao; imports nothing."""
    return any(kind.__name__ == "AOBaseConfig" for kind in type(scheme).__mro__)


@dataclass(frozen=True)
class TorchaoQuantizer:
    """Quantizes one linear layer in place as `configuration` says."""

    configuration: Any

    def __call__(self, layer: torch.nn.Module) -> torch.nn.Module:
        """Quantizes `layer` and returns it."""
        _quantize(type(self.configuration).__name__)(layer, self.configuration)
        return layer


def layer_quantizer(configuration: Any) -> TorchaoQuantizer:
    """The function that quantizes one linear layer in place as `configuration` says.

    Raises:
        ImportError: torchao is not installed; the message says what to do.
        NotImplementedError: it has a configuration for each of several names, which a layer by
            itself does not know.
    """
    if any("fqn_to_config" in name for name in vars(configuration)):
        raise NotImplementedError(
            f"quantize: {type(configuration).__name__} chooses layers by their names, which is not "
            "supported. Call dormant.quantize for each configuration in it, with skip for the "
            "layers that are not meant."
        )
    _quantize(type(configuration).__name__)
    return TorchaoQuantizer(configuration)


def _quantize(name: str) -> Callable[[torch.nn.Module, Any], None]:
    try:
        function: Callable[[torch.nn.Module, Any], None] = importlib.import_module(
            "torchao.quantization"
        ).quantize_
    except ImportError as error:
        raise ImportError(
            f"quantize: {name} is a configuration of torchao, which cannot be imported ({error}). "
            "Install it: pip install 'torchao>=0.18'. The rest of dormant does not need it."
        ) from error
    return function
