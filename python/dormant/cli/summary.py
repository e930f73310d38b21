"""`dormant summary` shows how much memory a model needs, without allocating it."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dormant.cli.models import constructor
from dormant.cli.screen import format_columns
from dormant.quantization.api import quantize
from dormant.text.printable import printable
from dormant.text.table import format_bytes, format_count
from dormant_command.outcome import Outcome

_DTYPES = (torch.float32, torch.bfloat16)
_SCHEMES = {"int8": 1.0, "nf4": 0.5}  # bytes for each element, without scales


@dataclass(frozen=True)
class _Need:
    """What one form of the model takes.

    Attributes:
        divided: bytes that ranks divide.
        whole: bytes that each rank has.
        quantized: share of the parameters that is quantized, from 0 to 1.
    """

    divided: int
    whole: int
    quantized: float = 0.0

    def on(self, ranks: int) -> int:
        return -(-self.divided // ranks) + self.whole


def run(options: argparse.Namespace) -> Outcome:
    """What the model needs."""
    model = constructor(options.model, None)()
    parameters = list(model.parameters())
    elements = sum(parameter.numel() for parameter in parameters)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    needs = {_name(dtype): _plain(parameters, buffers, dtype) for dtype in _DTYPES}
    skipped: dict[str, str] = {}
    for scheme in _SCHEMES:
        try:
            needs[scheme] = _quantized(model, buffers, scheme)
        except (ImportError, ValueError, NotImplementedError) as error:
            skipped[scheme] = str(error)
    data = {
        "model": type(model).__name__,
        "parameters": elements,
        "tensors": len(parameters),
        "buffers_nbytes": buffers,
        "forms": {
            name: {
                "nbytes": need.on(1),
                "quantized": need.quantized,
                "ranks": {str(count): need.on(count) for count in options.ranks},
            }
            for name, need in needs.items()
        },
        "skipped": skipped,
    }
    return Outcome(data, "" if options.json else _text(data, needs, options.ranks))


def _plain(parameters: Sequence[torch.Tensor], buffers: int, dtype: torch.dtype) -> _Need:
    return _Need(sum(_nbytes(parameter, dtype) for parameter in parameters), buffers)


def _nbytes(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    casts = tensor.is_floating_point()
    return tensor.numel() * (dtype.itemsize if casts else tensor.element_size())


def _quantized(model: torch.nn.Module, buffers: int, scheme: str) -> _Need:
    """What is not quantized is in bfloat16."""
    own = copy.deepcopy(model).to(torch.bfloat16)
    nbytes = sum(_nbytes(parameter, torch.bfloat16) for parameter in own.parameters())
    report = quantize(own, scheme)
    codes, scales = 0, 0
    for layer in report.layers:
        count = torch.Size(layer.shape).numel()
        codes += int(count * _SCHEMES[scheme] + 0.5)
        scales += (layer.nbytes or 0) - int(count * _SCHEMES[scheme] + 0.5)
        nbytes -= layer.nbytes_before
    return _Need(codes + nbytes, scales + buffers, report.share)


def _text(data: dict[str, Any], needs: dict[str, _Need], ranks: Sequence[int]) -> str:
    cells = [
        (
            name + (f" ({need.quantized:.0%} of the bytes)" if need.quantized else ""),
            format_bytes(need.on(1)),
            *(format_bytes(need.on(count)) for count in ranks),
        )
        for name, need in needs.items()
    ]
    header = ("", "whole", *(format_count(count, "rank") for count in ranks))
    lines = [
        f"{data['model']}: {data['parameters']:,} parameters in "
        f"{format_count(data['tensors'], 'tensor')}",
        "",
        format_columns(header, cells, right=range(1, len(header))),
    ]
    lines += [f"{scheme}: {printable(reason)}" for scheme, reason in data["skipped"].items()]
    return "\n".join(lines)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
