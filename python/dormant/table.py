"""Text tables and byte counts for reports and summaries."""

from __future__ import annotations

import io
from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_ROWS = 40
_WIDTH = 160


def format_bytes(count: float) -> str:
    """`count` bytes in the largest unit that leaves at least one: 1536 is '1.5 KiB'."""
    unit = 0
    while count >= 1024 and unit + 1 < len(_UNITS):
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def format_names(names: Sequence[str]) -> str:
    """The first name, and the others behind it as its aliases."""
    first, *aliases = names
    return f"{first} (= {', '.join(aliases)})" if aliases else first


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str]
) -> str:
    """A table of text, its first column to the left and the others to the right.

    Args:
        header: column titles.
        rows: cells, as many as there are titles. The middle of a long table is left out.
        footer: lines below it.

    Returns:
        The text, without a newline at its end.
    """
    # Imported here: only who prints a table waits for rich.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, title in enumerate(header):
        table.add_column(title, justify="right" if position else "left", overflow="fold")
    hidden = len(rows) - _ROWS
    for position, row in enumerate(rows):
        if hidden > 0 and position == _ROWS // 2:
            table.add_row(f"... {hidden} more ...", end_section=True)
        if hidden <= 0 or not _ROWS // 2 <= position < _ROWS // 2 + hidden:
            table.add_row(*row)
    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, markup=False, highlight=False)
    console.print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*(line for line in lines if line), *footer])
