"""The picture of the demo: time of each way, and memory over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results import Result

from dormant.reporting.plot import draw_memory

_COLUMNS = 3
_COLORS = {"ordinary": "#D55E00", "dormant": "#0072B2"}  # Okabe and Ito


def draw(results: Mapping[str, Result], machine: str, path: Path) -> None:
    """Writes the picture of all cases."""
    from matplotlib.figure import Figure

    rows = -(-(len(results) + 1) // _COLUMNS)
    figure = Figure(figsize=(5.2 * _COLUMNS, 3.4 * rows), dpi=110, layout="constrained")
    every = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    _draw_times(every[0], results)
    for axes, result in zip(every[1:], results.values(), strict=False):
        _draw_memory(axes, result)
    for axes in every[len(results) + 1 :]:
        axes.set_axis_off()
    handles, labels = every[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(
        "The ordinary way and with Dormant; the results have the same bits. Lines: resident memory "
        "above the start;\nfilled: without pages of files; dots: when the model was returned.\n"
        f"{machine}",
        fontsize="small",
    )
    figure.savefig(path)


def _draw_times(axes: Any, results: Mapping[str, Result]) -> None:
    places = range(len(results))
    for shift, (way, color) in zip((-0.2, 0.2), _COLORS.items(), strict=True):
        seconds = [getattr(result, way).used for result in results.values()]
        bars = axes.barh([at + shift for at in places], seconds, 0.38, color=color, label=way)
        axes.bar_label(
            bars,
            [f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in seconds],
            fontsize="x-small",
            padding=2,
        )
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_yticks(places, [result.title for result in results.values()], fontsize="small")
    axes.invert_yaxis()
    axes.set_title("seconds until the weights have been read once", fontsize="medium")


def _draw_memory(axes: Any, result: Result) -> None:
    axes.set_title(result.title, fontsize="medium")
    for way, color in _COLORS.items():
        measured = getattr(result, way)
        if not measured.trace:
            continue
        draw_memory(axes, measured.trace, above=measured.start, color=color, label=way)
        returned = max(
            (sample for sample in measured.trace if sample.seconds <= measured.seconds),
            default=measured.trace[0],
        )
        axes.plot(returned.seconds, returned.resident - measured.start, "o", color=color)
