"""Tables for a terminal, or for a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence

from dormant.text.printable import printable
from dormant.text.table import require_rich

_WIDTH_OF_A_PIPE = 160


def format_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> str:
    """All rows in columns; those in `right` are right-aligned. Has no newline at its end."""
    require_rich()
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, title in enumerate(header):
        table.add_column(
            title, justify="right" if position in right else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        table.add_row(*map(printable, row))
    width = _WIDTH_OF_A_PIPE
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, 60)
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, markup=False, highlight=False)
    console.print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)
