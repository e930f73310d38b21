"""What a task found: tables for people, measurements for programs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine


@dataclass
class Sheet:
    """One table. The first column stands left, figures right."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for position, column in enumerate(self.columns):
            table.add_column(column, justify="right" if position else "left", no_wrap=not position)
        for row in self.rows:
            table.add_row(*row)
        console.print(table, markup=False)
        for note in self.notes:
            console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


@dataclass
class Outcome:
    """The result of a task.

    Attributes:
        task: its name.
        sheets: tables, in order.
        measurements: everything measured, each a plain dict with every sample.
        compared: how many outputs were compared with eager's before anything was timed.
        mismatches: outputs that should have been equal and were not.
    """

    task: str
    sheets: list[Sheet] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    compared: int = 0
    mismatches: list[str] = field(default_factory=list)

    def check(self, what: str, differing: Sequence[str]) -> bool:
        """Notes a comparison; `differing` names the parts that were not equal."""
        self.compared += 1
        if differing:
            self.mismatches.append(f"{what}: {', '.join(differing[:5])} ({len(differing)})")
        return not differing

    def print(self, console: Console) -> None:
        for sheet in self.sheets:
            console.print()
            sheet.print(console)
        verdict = (
            f"{len(self.mismatches)} of them DIFFER: nothing above that rests on them counts"
            if self.mismatches
            else "all equal"
        )
        console.print(f"  outputs compared before timing: {self.compared}, {verdict}")
        for mismatch in self.mismatches:
            console.print(f"  {mismatch}", style="red", markup=False)

    def save(self, folder: Path, command: str) -> Path:
        """Writes `TASK.json`, with the machine, the day (UTC) and the command that measured."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.task}.json"
        today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
        found = {"date": today, "command": command, "machine": machine(), **asdict(self)}
        path.write_text(json.dumps(found, indent=1) + "\n")
        return path


def aim(text: str, got: float, limit: float, unit: str) -> str:
    """A note that says whether an aim was met: 'aim: 7B in 0.3 s: met, 0.21 s'."""
    verdict = "met" if got <= limit else "MISSED" if got > limit else "unknown"
    return f"aim: {text} <= {limit:g} {unit}: {verdict}, {got:.3g} {unit}"
