"""The report of `quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dormant.reporting.rows import rows_of
from dormant.tensors.names import grouped
from dormant.text.table import format_bytes, format_count, format_html_table, format_table

_HEADER = ("layer", "was", "shape", "before", "after")


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


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        """One line."""
        return f"QuantizeReport({self._totals()[0]})"

    def __str__(self) -> str:
        """Totals, a table of what was quantized, and what was not; repeated layers share a line."""
        return format_table(_HEADER, self._rows(), self._totals())

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return format_html_table(_HEADER, self._rows(), self._totals())

    def _rows(self) -> list[Sequence[str]]:
        return rows_of(
            (
                (layer.name,),
                (layer.kind, "x".join(map(str, layer.shape))),
                (layer.nbytes_before, layer.nbytes),
            )
            for layer in self.layers
        )

    def _totals(self) -> list[str]:
        before = sum(layer.nbytes_before for layer in self.layers)
        known = [layer.nbytes for layer in self.layers if layer.nbytes is not None]
        after = f", {format_bytes(sum(known))} after" if len(known) == len(self.layers) else ""
        parameters = sum(layer.is_parameter for layer in self.layers)
        counts = format_count(len(self.layers) - parameters, "layer")
        if parameters:
            counts += f" and {format_count(parameters, 'parameter')}"
        kept: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            kept.setdefault(reason, []).append(name)
        return [
            f"{self.scheme}: {counts}, {format_bytes(before)} before{after}",
            f"{self.share:.1%} of the {format_bytes(self.parameter_nbytes)} of all parameters was "
            "quantized",
            *(
                f"kept {name}: {reason}"
                for reason, names in kept.items()
                for name in grouped(names)
            ),
        ]
