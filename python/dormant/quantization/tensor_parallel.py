"""Quantized layers in `parallelize_module`: each rank holds and computes its part of the weight.

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
from dataclasses import dataclass
from typing import Any

import torch

from dormant._extension import _C
from dormant.quantization.foreign_layer import is_foreign
from dormant.quantization.four_bit import NESTED_BLOCK, FourBit, nested_map, statistics_in
from dormant.quantization.int8 import Int8
from dormant.quantization.layers import format_of, set_format
from dormant.recording.context import lazy_init
from dormant.recording.patches import Function, Patch, declare
from dormant.tensors.division import Division, division_of
from dormant.tensors.storage import unrecorded


@dataclass(frozen=True, kw_only=True)
class DividedFourBit(FourBit):
    """The format of a Linear4bit that has a part of its weight."""

    division: Division

    @staticmethod
    def check_division(scheme: FourBit, shape: torch.Size, division: Division) -> None:
        """Raises ValueError if a block of scales belongs to two ranks."""
        rows, columns = shape
        size, block = division.size, scheme.block_size
        if division.dim == 0:
            step = size * block // math.gcd(columns, block)
            fits, what = rows % step == 0, f"its number of rows a multiple of {step}"
        else:
            fits = columns % (size * block) == 0
            what = f"its number of columns a multiple of {size * block}"
        if not fits:
            by = "rows" if division.dim == 0 else "columns"
            raise ValueError(
                f"parallelize_module: the weight of a Linear4bit, {rows} x {columns} in {scheme}, "
                f"cannot be divided by {by} among {size} ranks at the ends of blocks. That needs "
                f"{what}, or a smaller block_size; or leave the layer out of the plan, or of "
                "dormant.quantize (skip=...)."
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
    def check_division(scheme: Int8, shape: torch.Size, division: Division) -> None:
        """Raises ValueError for rows that do not divide evenly, NotImplementedError for columns."""
        rows, columns = shape
        if division.dim == 1:
            raise NotImplementedError(
                f"parallelize_module: the weight of a Linear8bitLt, {rows} x {columns}, cannot be "
                "divided by columns (RowwiseParallel): LLM.int8 quantizes each row of the input by "
                "its largest value, which no rank has. Use ColwiseParallel, quantize the layer to "
                "nf4, or skip it (dormant.quantize(..., skip=...))."
            )
        if rows % division.size:
            raise ValueError(
                f"parallelize_module: the {rows} rows of a Linear8bitLt cannot be divided evenly "
                f"among {division.size} ranks. Leave the layer out of the plan, or of "
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
def _dividing(module: torch.nn.Module, mesh: Any, dim: int) -> Iterator[None]:
    """Divides the packed weight of `module`; while open, a plain weight stands in its place."""
    scheme = format_of(module)
    assert isinstance(scheme, (FourBit, Int8))
    if division_of(module) is not None:
        raise ValueError("parallelize_module: the quantized layer is already divided.")
    weight: Any = module._parameters["weight"]
    shape = weight.quant_state.shape if isinstance(scheme, FourBit) else weight.shape
    division = Division(mesh, dim, shape[0])
    divided = _divided(scheme, shape, division)
    with unrecorded(), torch.device("meta"):
        plain = torch.nn.Parameter(torch.empty(shape), requires_grad=False)
    module._parameters["weight"] = plain
    try:
        yield
    finally:
        module._parameters["weight"] = weight
    layers = importlib.import_module("dormant.quantization.divided_layers")
    divided.divide(module)
    four_bit = isinstance(scheme, FourBit)
    module.__class__ = layers.DividedLinear4bit if four_bit else layers.DividedLinear8bitLt
    vars(module)[Division.ATTRIBUTE] = division
    set_format(module, divided)


def _divided(
    scheme: FourBit | Int8, shape: torch.Size, division: Division
) -> DividedFourBit | DividedInt8:
    kind: Any = DividedFourBit if isinstance(scheme, FourBit) else DividedInt8
    kind.check_division(scheme, shape, division)
    divided: DividedFourBit | DividedInt8 = kind(**vars(scheme), division=division)
    return divided


def _cuts_what_is_packed(dim: int, original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: Any, module: torch.nn.Module, device_mesh: Any) -> Any:
        weight: Any = module._parameters.get("weight")
        if not isinstance(format_of(module), (FourBit, Int8)) or is_foreign(weight):
            return original(self, module, device_mesh)
        with _dividing(module, device_mesh, dim):
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
