"""Configuration objects of torchao, applied to one layer or to the parameters that they name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
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


def layer_quantizer(configuration: Any) -> TorchaoQuantizer | TorchaoByName:
    """A quantizer for one linear layer in place as `configuration` says, or for the names in it.

    Raises:
        ImportError: torchao is not installed; the message says what to do.
    """
    _quantize(type(configuration).__name__)
    if hasattr(configuration, "fqn_to_config"):
        return TorchaoByName(configuration)
    return TorchaoQuantizer(configuration)


@dataclass(frozen=True)
class TorchaoByName:
    """An FqnToConfig: a configuration for each of several names of modules and parameters."""

    configuration: Any

    def chosen(self, model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, NamedPart]]:
        """Each module in which `quantize_` would change something, with its name and the changes.

        The order of precedence is the one that FqnToConfig documents: exact names of parameters, of
        modules, then regular expressions for parameters, for modules, then "_default".
        """
        for name, module in model.named_modules():
            parts = dict(self._parts(name, module))
            if any(parts.values()):
                given = {part: each for part, each in parts.items() if each is not None}
                yield name, module, NamedPart(type(self.configuration), given)

    def _parts(self, name: str, module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
        """Names within `module`, empty for the module itself, with the configuration of each."""
        table: Any = self.configuration.fqn_to_config
        own = {f"{name}.{each}" if name else each: each for each in module._parameters}
        exact = [(own[full], table[full]) for full in own if full in table]
        yield from exact
        named = any(configuration is not None for _, configuration in exact)
        if not named and name in table:
            yield "", table[name]
            return
        done = {part for part, _ in exact}
        for full, part in own.items():
            pattern = self._first(full) if part not in done else None
            if pattern is not None:
                yield part, table[pattern]
                named = True
        if not named and not exact:
            pattern = self._first(name)
            if pattern is None and isinstance(module, torch.nn.Linear) and "_default" in table:
                pattern = "_default"
            if pattern is not None:
                yield "", table[pattern]

    def _first(self, name: str) -> str | None:
        """The first regular expression that matches the whole `name`."""
        patterns = [key for key in self.configuration.fqn_to_config if key.startswith("re:")]
        return next((each for each in patterns if re.fullmatch(each[3:], name)), None)


@dataclass(frozen=True)
class NamedPart:
    """Quantizes one module, or some of its parameters.

    Attributes:
        kind: the class FqnToConfig.
        parts: configurations by the name of the parameter; "" stands for the module.
    """

    kind: Any
    parts: dict[str, Any]

    def __call__(self, module: torch.nn.Module) -> torch.nn.Module:
        """Quantizes `module` and returns its replacement."""
        holder = torch.nn.Module()
        holder.module = module
        names = {f"module.{part}" if part else "module": each for part, each in self.parts.items()}
        _quantize(self.kind.__name__)(holder, self.kind(names), filter_fn=None)
        quantized: torch.nn.Module = holder.module
        return quantized


def _quantize(name: str) -> Callable[..., None]:
    try:
        function: Callable[..., None] = importlib.import_module("torchao.quantization").quantize_
    except ImportError as error:
        raise ImportError(
            f"quantize: {name} is a configuration of torchao, which cannot be imported ({error}). "
            "Install it: pip install 'torchao>=0.18'. The rest of dormant does not need it."
        ) from error
    return function
