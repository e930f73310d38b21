"""Plots of reports and summaries; the only module that imports matplotlib."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dormant.reporting.memory import MemorySample
from dormant.text.printable import printable
from dormant.text.table import cut, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from dormant.reporting.report import Report
    from dormant.reporting.summaries import Summary

_PARTS = 12  # bars; more would not be readable
_FEWEST_PLACES = 5  # for bars, so that a few of them are not thicker than many
_LONGEST_NAME = 36  # characters
_TICKS = 4  # besides zero, at most
# Okabe and Ito's colors, which people with any color vision can distinguish.
_COLORS = {
    "checkpoint": "#0072B2",
    "initialized": "#E69F00",
    "quantized": "#009E73",
    "empty": "#CC79A7",
    "meta": "#56B4E9",
    "real": "#999999",
    "lazy": "#E69F00",
}


def plot_report(report: Report, path: str | os.PathLike[str] | None) -> Figure:
    """`Report.plot`."""
    figure = new_figure("Report.plot", 2 if report.memory_trace else 1)
    parts = by_part([(t.names[0], t.origin, t.nbytes) for t in report.tensors])
    axes = figure.axes[0]
    _draw_parts(axes, parts)
    axes.set_title(f"{format_bytes(report.nbytes)}, {report.seconds:.3g} s")
    if report.memory_trace:
        axes = figure.axes[1]
        draw_memory(axes, report.memory_trace)
        axes.set_title("memory of the process")
        _add_legend(axes)
    return _finished(figure, path)


def plot_summary(summary: Summary, path: str | os.PathLike[str] | None) -> Figure:
    """`Summary.plot`."""
    figure = new_figure("Summary.plot", 1)
    parts = by_part([(t.names[0], "lazy" if t.lazy else "real", t.nbytes) for t in summary.tensors])
    axes = figure.axes[0]
    _draw_parts(axes, parts)
    axes.set_title(
        f"{format_bytes(summary.bytes_now)} now, "
        f"{format_bytes(summary.bytes_after)} once materialized"
    )
    return _finished(figure, path)


def _finished(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    if path is not None:
        figure.savefig(Path(path))
    return figure


def new_figure(operation: str, columns: int) -> Figure:
    """An empty figure with axes side by side.

    Args:
        operation: the operation that draws, for the error.
        columns: number of axes.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        # Not pyplot, which would select a window system and keep the figure alive.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{operation}: matplotlib is required and cannot be imported ({error}). Install it: "
            "pip install 'dormant[plots]'"
        ) from error

    class ShownFigure(Figure):
        """A figure that notebooks show although pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    figure = ShownFigure(figsize=(6.4 * columns, 4.8), dpi=120, layout="constrained")
    figure.subplots(1, columns)
    return figure


def by_part(tensors: Sequence[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    """Bytes of each part of a model by kind.

    Args:
        tensors: name, kind and bytes of each.

    Returns:
        For each part, in the model's order, its bytes by kind. Parts are modules at the deepest
        level that has at most twelve of them; if there is no such level, they are the largest
        modules, and one part for the rest.
    """
    found: dict[str, dict[str, int]] = {}
    # A deeper level has at least as many parts, and the deepest level has the tensors themselves.
    for depth in range(1, 1 + max((name.count(".") + 1 for name, _, _ in tensors), default=0)):
        deeper = _by_prefix(tensors, depth)
        if found and len(deeper) > _PARTS:
            break
        found = deeper
    if len(found) <= _PARTS:
        return found
    largest = sorted(found, key=lambda part: -sum(found[part].values()))[: _PARTS - 1]
    rest: dict[str, int] = {}
    for part in found.keys() - set(largest):
        for kind, nbytes in found[part].items():
            rest[kind] = rest.get(kind, 0) + nbytes
    chosen = {part: kinds for part, kinds in found.items() if part in largest}
    return {**chosen, f"{len(found) - len(largest)} others": rest}


def _by_prefix(tensors: Sequence[tuple[str, str, int]], depth: int) -> dict[str, dict[str, int]]:
    parts: dict[str, dict[str, int]] = {}
    for name, kind, nbytes in tensors:
        kinds = parts.setdefault(".".join(name.split(".")[:depth]), {})
        kinds[kind] = kinds.get(kind, 0) + nbytes
    return parts


def _draw_parts(axes: Axes, parts: Mapping[str, Mapping[str, int]]) -> None:
    """Draws a bar for each part, divided by kind, with the first part on top."""
    places = range(len(parts))
    left = [0.0] * len(parts)
    for kind, color in _COLORS.items():
        widths = [float(kinds.get(kind, 0)) for kinds in parts.values()]
        if any(kind in kinds for kinds in parts.values()):
            axes.barh(places, widths, left=left, color=color, label=kind)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    names = [cut(printable(name), _LONGEST_NAME) for name in parts]
    axes.set_yticks(places, names, parse_math=False)
    axes.set_ylim(max(len(parts), _FEWEST_PLACES) - 0.5, -0.5)
    label_bytes(axes.xaxis, max(left, default=0))
    axes.set_xlim(0, 1.05 * max(*left, 1.0) if left else 1.0)
    if parts:
        _add_legend(axes)
    else:
        axes.text(0.5, 0.5, "no tensors", ha="center", transform=axes.transAxes)


def _add_legend(axes: Axes) -> None:
    """A legend below the axes, where it hides nothing."""
    below = -0.14 if axes.get_xlabel() else -0.08
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=3, frameon=False)


def draw_memory(
    axes: Axes,
    samples: Sequence[MemorySample],
    *,
    above: int = 0,
    color: str = "#0072B2",
    label: str = "resident",
) -> None:
    """Draws memory over time: a line for the total, and a filled area without pages of files.

    Args:
        axes: axes of matplotlib.
        samples: samples in order of time.
        above: bytes to subtract, such as those that the process used before.
        color: color of line and area.
        label: label of the line in the legend.
    """
    seconds = [sample.seconds for sample in samples]
    resident = [float(sample.resident - above) for sample in samples]
    # Pages of libraries existed before; only new pages belong to the files that were read.
    libraries = min((sample.mapped for sample in samples), default=0)
    private = [
        total - (sample.mapped - libraries) for total, sample in zip(resident, samples, strict=True)
    ]
    axes.plot(seconds, resident, color=color, linewidth=1.2, label=label)
    axes.fill_between(
        seconds, private, color=color, alpha=0.25, linewidth=0, label=f"{label}, without files"
    )
    axes.set_xlabel("seconds")
    axes.locator_params(axis="x", nbins=_TICKS)
    # The limits of everything drawn so far, because there may be several timelines.
    lowest, highest = sorted(axes.dataLim.intervaly)
    label_bytes(axes.yaxis, highest)
    axes.set_ylim(min(0.0, lowest), 1.05 * max(highest, 1.0))


def label_bytes(axis: Axis, highest: float) -> None:
    """Labels an axis that shows up to `highest` bytes, at round numbers of binary units."""
    from matplotlib.ticker import MultipleLocator

    step = 2 ** max(0, math.ceil(math.log2(max(highest, 1.0) / _TICKS)))
    axis.set_major_locator(MultipleLocator(step))
    axis.set_major_formatter(_bytes_on_axis)


def _bytes_on_axis(value: float, _position: Any) -> str:
    text = format_bytes(abs(value)).replace(".0 ", " ")
    return text if value >= 0 else f"-{text}"
