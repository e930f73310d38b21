"""What subcommands say about a checkpoint that they wrote."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dormant.cli.destination import files_below
from dormant.reporting.memory import PeakMemory
from dormant.text.table import format_bytes, format_count
from dormant_command.outcome import Outcome


class Writing:
    """Measures a subcommand from here on until `outcome`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._peak = PeakMemory()

    def outcome(self, out: Path, about: Mapping[str, Any], *, action: str = "wrote") -> Outcome:
        """The result of the subcommand.

        Args:
            out: the output.
            about: "tensors", "nbytes" and, if there are any, "copied" and "left_out".
            action: what the subcommand did, before what it wrote.
        """
        data: dict[str, Any] = {
            "output": str(out),
            "files": files_below(out),
            **about,
            "seconds": time.perf_counter() - self._started,
            "peak_memory": self._peak.result(),
        }
        peak = data["peak_memory"]
        lines = [
            f"{action} {format_count(data['tensors'], 'tensor')}, {format_bytes(data['nbytes'])}, "
            f"to {out} ({format_count(len(data['files']), 'file')}) in {data['seconds']:.1f} s"
            + ("" if peak is None else f", peak memory {format_bytes(peak)}")
        ]
        if data.get("copied"):
            lines.append(f"copied {', '.join(data['copied'])}")
        if data.get("left_out"):
            lines.append(f"left out, not in the model: {', '.join(data['left_out'])}")
        return Outcome(data, "\n".join(lines))
