"""How a library keeps a quantized weight in a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import torch

State: TypeAlias = "dict[str, object]"

_LAYER_PARTS = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4",
    "SCB",
    "weight_format",
)


class PackedFormat(Protocol):
    """How one library keeps a quantized weight in a module."""

    @property
    def codes_per_byte(self) -> int:
        """How many elements a packed byte holds."""

    @property
    def attribute(self) -> str:
        """The name in the module of the parameter in full precision."""

    @property
    def held_as(self) -> str:
        """The name in the module of the parameter that is the packed bytes."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Every name in the module under which a checkpoint of quantized weights may keep it."""

    def showing(
        self, module: torch.nn.Module, parameter: torch.nn.Parameter
    ) -> contextlib.AbstractContextManager[None]:
        """Has `parameter` stand in `module` under `attribute` instead of what is packed."""

    def check(self, weight: torch.Tensor, name: str) -> None:
        """Raises ValueError where a weight like this can't be quantized."""

    def refresh(self, module: torch.nn.Module, weight: torch.Tensor) -> None:
        """Quantizes `weight` anew into the parameter object that is there."""

    def follow(
        self, module: torch.nn.Module, duplicate: torch.nn.Module, memo: Mapping[int, Any]
    ) -> None:
        """Called while `module` is deep-copied to `duplicate`, its parameters already in `memo`."""

    def finish(self, module: torch.nn.Module) -> None:
        """Called when the weight is real: `module` is the library's and nothing else."""

    def accept(
        self, module: torch.nn.Module, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> None:
        """Takes what a checkpoint of quantized weights has for this weight."""

    def attributes(self, module: torch.nn.Module) -> list[tuple[dict[str, object], State]]:
        """Each dict that `refresh` and `accept` write to, with what is in it now."""

    # What ranks need that have parts of the packed bytes (parts.py).

    def adopt_part(self, module: torch.nn.Module) -> None:
        """Called when the packed bytes have been divided: `module` works with what is gathered."""

    def elements_per_scale(self, shape: torch.Size) -> int:
        """How many elements of a weight of `shape` share a scale, one after the other."""

    def quantized_part(
        self, elements: torch.Tensor, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed bytes, a vector, and scales of elements that a run of scales belongs to.

        Args:
            elements: lazy, a vector.
            shape: of the whole weight.
        """

    def statistics(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """What is made of all scales; nothing where a sharding has taken it."""

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """Values for `statistics`.

        Args:
            scales: all, in order, float32.
            threads: how many the library would have.
        """


class LayerFormat:
    """What the formats have in common that make a linear layer one of another library."""

    attribute: ClassVar[str] = "weight"
    held_as: ClassVar[str] = "weight"
    parts: ClassVar[tuple[str, ...]] = _LAYER_PARTS

    @contextlib.contextmanager
    def showing(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> Iterator[None]:
        """Has `parameter` be the weight."""
        packed = module._parameters[self.attribute]
        module._parameters[self.attribute] = parameter
        try:
            yield
        finally:
            module._parameters[self.attribute] = packed
