"""The report of `quantize`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dormant.text.table import format_bytes, format_count, format_table


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer, or one parameter of another module, that `quantize` quantized.

    Attributes:
        name: the name of the layer or parameter in the model.
        kind: the previous class of the layer, or the class of the parameter's module.
        shape: the shape of the full-precision weight, as the module had it.
        nbytes_before: bytes of that weight.
        nbytes: bytes of the packed weight and its statistics; None if they are not known yet,
            because another library decides on them.
        is_parameter: whether it is a packed parameter, not a layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes_before: int
    nbytes: int | None
    is_parameter: bool = False


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize` did.

    Attributes:
        scheme: the scheme in words.
        layers: the layers and parameters that are quantized, or will be when they are materialized.
        skipped: what keeps its precision, with the reason: linear layers, parameters that may stack
            the matrices of experts, and every other parameter of more than 1 MiB.
        parameter_nbytes: bytes of all parameters of the model, before.
    """

    scheme: str
    layers: list[QuantizedLayer]
    skipped: dict[str, str]
    parameter_nbytes: int = 0

    @property
    def share(self) -> float:
        """The quantized share of the bytes of all parameters, from 0 to 1."""
        quantized = sum(layer.nbytes_before for layer in self.layers)
        return quantized / self.parameter_nbytes if self.parameter_nbytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The whole report in plain dicts, lists, numbers and strings, as for JSON."""
        return {**asdict(self), "share": self.share}

    def __str__(self) -> str:
        """A short table: what was quantized and what was not, then totals."""
        rows = [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)),
                format_bytes(layer.nbytes_before),
                "later" if layer.nbytes is None else format_bytes(layer.nbytes),
            )
            for layer in self.layers
        ]
        before = sum(layer.nbytes_before for layer in self.layers)
        known = [layer.nbytes for layer in self.layers if layer.nbytes is not None]
        total = f", {format_bytes(sum(known))} after" if len(known) == len(self.layers) else ""
        parameters = sum(layer.is_parameter for layer in self.layers)
        counts = f"{len(self.layers) - parameters} layers"
        if parameters:
            counts += f" and {format_count(parameters, 'parameter')}"
        footer = [
            f"{self.scheme}: {counts}, {format_bytes(before)} before{total}",
            *(f"kept {name}: {reason}" for name, reason in self.skipped.items()),
            f"{self.share:.1%} of the {format_bytes(self.parameter_nbytes)} of all parameters was "
            "quantized",
        ]
        return format_table(("layer", "was", "shape", "before", "after"), rows, footer)
