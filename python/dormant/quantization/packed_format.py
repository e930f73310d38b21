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
        """Every name that a checkpoint of quantized weights may use for it in the module."""

    def showing(
        self, module: torch.nn.Module, parameter: torch.nn.Parameter
    ) -> contextlib.AbstractContextManager[None]:
        """Puts `parameter` under `attribute` into `module`, in place of what is packed."""

    def check(self, weight: torch.Tensor, name: str) -> None:
        """Raises ValueError if a weight like this cannot be quantized."""

    def refresh(self, module: torch.nn.Module, weight: torch.Tensor) -> None:
        """Quantizes `weight` again into the existing parameter object."""

    def follow(
        self, module: torch.nn.Module, duplicate: torch.nn.Module, memo: Mapping[int, Any]
    ) -> None:
        """Called while `module` is deep-copied to `duplicate`, its parameters already in `memo`."""

    def finish(self, module: torch.nn.Module) -> None:
        """Called when the weight is real: `module` then keeps nothing of Dormant."""

    def accept(
        self, module: torch.nn.Module, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> None:
        """Takes what a checkpoint of quantized weights has for this weight."""

    def attributes(self, module: torch.nn.Module) -> list[tuple[dict[str, object], State]]:
        """Each dict that `refresh` and `accept` write to, with its current contents."""

    def move_statistics(self, module: torch.nn.Module, place: torch.device) -> None:
        """Called when the packed bytes are on `place`: what they are unpacked with follows them."""

    # What ranks need that hold parts of the packed bytes (parts.py).

    def adopt_part(self, module: torch.nn.Module) -> None:
        """Called when the packed bytes have been sharded: `module` works with what is gathered."""

    def elements_per_scale(self, shape: torch.Size) -> int:
        """The number of consecutive elements of a weight of `shape` that share a scale."""

    def quantized_part(
        self, elements: torch.Tensor, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The packed bytes (a vector) and the scales of elements that whole scales belong to.

        Args:
            elements: lazy, a vector.
            shape: the shape of the whole weight.
        """

    def statistics(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """The tensors that are computed from all scales; empty if sharding has removed them."""

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """Values for `statistics`.

        Args:
            scales: all scales, in order, float32.
            threads: the number of threads that the library would use.
        """


class LayerFormat:
    """What formats have in common that turn a linear layer into a layer of another library."""

    attribute: ClassVar[str] = "weight"
    held_as: ClassVar[str] = "weight"
    parts: ClassVar[tuple[str, ...]] = _LAYER_PARTS

    @contextlib.contextmanager
    def showing(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> Iterator[None]:
        """Makes `parameter` the weight."""
        packed = module._parameters[self.attribute]
        module._parameters[self.attribute] = parameter
        try:
            yield
        finally:
            module._parameters[self.attribute] = packed
