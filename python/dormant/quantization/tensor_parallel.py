"""Quantized layers in tensor parallelism: each rank holds and computes its part of the weight.

The library's layers do not support parts. Here, each packed weight is cut where blocks end, with
its scales, and the layer computes with its part (divided_layers.py). The scales of the whole weight
are quantized before they are cut, so that every element has the value that it has in the whole
layer.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from dormant._extension import _C
from dormant.quantization.foreign_layer import is_foreign
from dormant.quantization.four_bit import NESTED_BLOCK, FourBit, nested_map, statistics_in
from dormant.quantization.int8 import Int8
from dormant.quantization.layers import format_of, set_format
from dormant.recording.context import lazy_init
from dormant.recording.patches import Function, Patch, declare
from dormant.tensors.division import Division, divisions_of, set_division
from dormant.tensors.storage import unrecorded


@dataclass(frozen=True, kw_only=True)
class DividedFourBit(FourBit):
    """The format of a weight in 4 bits of which a rank has a part."""

    division: Division

    @property
    def of_whole(self) -> FourBit:
        """The format of the whole weight."""
        options = {each.name: getattr(self, each.name) for each in fields(FourBit)}
        return FourBit(**options)

    @staticmethod
    def check_division(
        scheme: FourBit, shape: torch.Size, dim: int, size: int, *, operation: str
    ) -> None:
        """Raises ValueError if a block of scales belongs to two ranks."""
        elements, block = shape.numel() // shape[0], scheme.block_size
        name = "columns" if dim else "rows" if len(shape) == 2 else "experts"
        step = size * block if dim else size * block // math.gcd(elements, block)
        if shape[dim] % step:
            what = "the weight of a Linear4bit" if len(shape) == 2 else "a stack of experts"
            raise ValueError(
                f"{operation}: {what}, {' x '.join(map(str, shape))} in {scheme}, cannot be "
                f"divided by {name} among {size} ranks at the ends of blocks. That needs its "
                f"number of {name} a multiple of {step}, or a smaller block_size; or leave the "
                "layer out of the plan, or of dormant.quantize (skip=...)."
            )

    def quantized(self, weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """This rank's part of the packed bytes of `weight`, and the state for it."""
        return self.cut(*super().quantized(weight))

    def prequantized(
        self, entries: Mapping[str, torch.Tensor], name: str, shape: torch.Size
    ) -> tuple[torch.Tensor, Any]:
        """This rank's part of a checkpoint of bitsandbytes."""
        return self.cut(*super().prequantized(entries, name, shape))

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """This rank's part of the statistics."""
        return self._cut_statistics(super().statistics_of(scales, threads))

    def divide(self, module: torch.nn.Module) -> None:
        """Cuts `module` to this rank's part."""
        weight: Any = module._parameters["weight"]
        with torch.no_grad():
            self._put(module, *self.cut(weight.data, weight.quant_state))

    def cut(self, packed: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """This rank's part of a packed weight, and the state for it."""
        absmax, *nested = self._cut_statistics(statistics_in(state))
        part = copy.copy(state)
        sizes = list(state.shape)
        sizes[self.division.dim] //= self.division.size
        part.shape, part.absmax, part.nested = torch.Size(sizes), absmax, bool(nested)
        if nested:
            part.state2 = copy.copy(state.state2)
            part.state2.absmax, part.offset = nested
        else:
            part.state2 = part.offset = None
        return self.division.cut(packed).unsqueeze(1), part

    def _cut_statistics(self, whole: list[torch.Tensor]) -> list[torch.Tensor]:
        """This rank's part; in float32 unless its scales are whole blocks of nested scales."""
        division = self.division
        if len(whole) == 1:
            return [division.cut(whole[0])]
        absmax, nested_absmax, offset = whole
        if division.dim == 0 and absmax.numel() % (division.size * NESTED_BLOCK) == 0:
            return [division.cut(absmax), division.cut(nested_absmax), offset.clone()]
        return [division.cut(_as_floats(*whole))]


def text_of_whole(state: Any, division: Division, name: str) -> dict[str, torch.Tensor]:
    """What bitsandbytes saves as text of the QuantState of a part, for the whole weight `name`."""
    whole = copy.copy(state)
    sizes = list(state.shape)
    sizes[division.dim] *= division.size
    whole.shape = torch.Size(sizes)
    text = f"quant_state.bitsandbytes__{state.quant_type}"
    return {f"{name}.{text}": whole.as_dict(packed=True)[text]}


def _as_floats(absmax: torch.Tensor, nested_absmax: torch.Tensor, offset: torch.Tensor) -> Any:
    """Nested scales as the library computes with them; lazy if the given ones are lazy."""
    with lazy_init() if _C.is_lazy(absmax) else contextlib.nullcontext(), torch.no_grad():
        spread = nested_absmax.unsqueeze(1).expand(-1, NESTED_BLOCK).reshape(-1)
        codes = nested_map().index_select(0, absmax.int())
        return codes * spread[: absmax.numel()] + offset


@dataclass(frozen=True, kw_only=True)
class DividedInt8(Int8):
    """The format of a Linear8bitLt that has some rows of its weight."""

    division: Division

    @staticmethod
    def check_division(
        scheme: Int8, shape: torch.Size, dim: int, size: int, *, operation: str
    ) -> None:
        """Raises ValueError for rows that do not divide evenly, NotImplementedError for columns."""
        rows, columns = shape
        if dim == 1:
            raise NotImplementedError(
                f"{operation}: the weight of a Linear8bitLt, {rows} x {columns}, cannot be "
                "divided by columns (RowwiseParallel): LLM.int8 quantizes each row of the input by "
                "its largest value, which no rank has. Use ColwiseParallel, quantize the layer to "
                "nf4, or skip it (dormant.quantize(..., skip=...))."
            )
        if rows % size:
            raise ValueError(
                f"{operation}: the {rows} rows of a Linear8bitLt cannot be divided evenly "
                f"among {size} ranks. Leave the layer out of the plan, or of "
                "dormant.quantize (skip=...)."
            )

    def quantized(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of the codes of `weight`, and their scales."""
        return self.cut(*super().quantized(weight))

    def prequantized(
        self, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of a checkpoint of bitsandbytes."""
        return self.cut(*super().prequantized(entries, shape))

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """This rank's part of the statistics."""
        return [self.division.cut(scales)]

    def divide(self, module: torch.nn.Module) -> None:
        """Cuts `module` to this rank's rows."""
        weight: Any = module._parameters["weight"]
        scales = self.scales(module)
        assert scales is not None
        with torch.no_grad():
            self._put(module, *self.cut(weight.data, scales))

    def cut(self, codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows, and their scales."""
        own = self.division.cut(codes).view(-1, codes.shape[1])
        return own, self.division.cut(scales)


@contextlib.contextmanager
def dividing(
    module: torch.nn.Module, mesh: Any, dim: int, *, operation: str
) -> Iterator[torch.nn.Parameter]:
    """Divides the packed weight of a layer; while open, a plain weight stands in its place.

    Args:
        module: a layer that `is_packed`.
        mesh: the ranks.
        dim: 0 divides rows, 1 divides columns.
        operation: for messages.

    Yields:
        The plain weight, on the meta device.

    Raises:
        ValueError, NotImplementedError: the weight cannot be divided in this way.
    """
    check_layer(module, dim, mesh.size(), operation=operation)
    scheme: Any = format_of(module)
    weight: Any = module._parameters["weight"]
    shape = _shape(module)
    division = Division(mesh, dim, shape[0])
    with unrecorded(), torch.device("meta"):
        plain = torch.nn.Parameter(torch.empty(shape), requires_grad=False)
    module._parameters["weight"] = plain
    try:
        yield plain
    finally:
        module._parameters["weight"] = weight
    layers = importlib.import_module("dormant.quantization.divided_layers")
    four_bit = isinstance(scheme, FourBit)
    kind: Any = DividedFourBit if four_bit else DividedInt8
    divided: DividedFourBit | DividedInt8 = kind(**vars(scheme), division=division)
    divided.divide(module)
    module.__class__ = layers.DividedLinear4bit if four_bit else layers.DividedLinear8bitLt
    set_division(module, "weight", division)
    set_format(module, divided)


def is_packed(module: torch.nn.Module) -> bool:
    """Whether `module` is a layer of bitsandbytes that can be divided."""
    weight: Any = module._parameters.get("weight")
    return isinstance(format_of(module), (FourBit, Int8)) and not is_foreign(weight)


def check_layer(module: torch.nn.Module, dim: int, size: int, *, operation: str) -> None:
    """Raises ValueError or NotImplementedError if `size` ranks cannot have parts of the layer."""
    if divisions_of(module):
        raise ValueError(f"{operation}: the quantized layer has been divided before.")
    scheme: Any = format_of(module)
    kind: Any = DividedFourBit if isinstance(scheme, FourBit) else DividedInt8
    kind.check_division(scheme, _shape(module), dim, size, operation=operation)


def _shape(module: torch.nn.Module) -> torch.Size:
    weight: Any = module._parameters["weight"]
    state = getattr(weight, "quant_state", None)
    return weight.shape if state is None else torch.Size(state.shape)


def _cuts_what_is_packed(dim: int, original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: Any, module: torch.nn.Module, device_mesh: Any) -> Any:
        if not is_packed(module):
            return original(self, module, device_mesh)
        with dividing(module, device_mesh, dim, operation="parallelize_module"):
            return original(self, module, device_mesh)

    return replacement


_STYLES = "torch.distributed.tensor.parallel.style"
_REASON = "divides packed weights at the ends of blocks"
declare(
    Patch(
        f"{_STYLES}:ColwiseParallel",
        "_apply",
        _REASON,
        functools.partial(_cuts_what_is_packed, 0),
    ),
    Patch(
        f"{_STYLES}:RowwiseParallel",
        "_apply",
        _REASON,
        functools.partial(_cuts_what_is_packed, 1),
    ),
)
