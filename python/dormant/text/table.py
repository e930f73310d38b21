"""Text tables and byte counts for reports and summaries."""

from __future__ import annotations

import html
import importlib
import io
import sys
from collections.abc import Sequence

from dormant.text.printable import printable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_ROWS = 40
_WIDTH = 160


def format_bytes(count: float) -> str:
    """`count` bytes in the largest unit that gives at least 1: 1536 is '1.5 KiB'."""
    unit = 0
    while count >= 1024 and unit + 1 < len(_UNITS):
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def format_count(count: int, noun: str) -> str:
    """'1 tensor', '2 tensors'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_names(names: Sequence[str]) -> str:
    """The first name, followed by the others as its aliases."""
    first, *aliases = names
    return f"{first} (= {', '.join(aliases)})" if aliases else first


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str]
) -> str:
    """A table of text with its first column left-aligned and the others right-aligned.

    Args:
        header: column titles.
        rows: cells, as many as there are titles. The middle of a long table is left out.
        footer: lines below the table.

    Returns:
        The text, without a newline at its end.
    """
    # Imported here, so that only code that prints a table waits for rich.
    require_rich()
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, title in enumerate(header):
        table.add_column(title, justify="right" if position else "left", overflow="fold")
    for row in _shortened(rows):
        table.add_row(*map(printable, row))
    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, markup=False, highlight=False)
    console.print(table)
    drawn = text.getvalue().replace("─", _rule())
    lines = [line.rstrip() for line in drawn.splitlines()]
    return "\n".join([*(line for line in lines if line), *map(printable, footer)])


def require_rich() -> None:
    """Raises ImportError if rich, which draws the tables, is not installed."""
    try:
        importlib.import_module("rich")
    except ImportError as error:
        raise ImportError(
            f"printing a table needs rich, which cannot be imported ({error}). Install it: "
            "pip install 'rich>=13'"
        ) from error


def format_html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str]
) -> str:
    """`format_table` as HTML for notebooks; takes the same arguments."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ("left", *("right",) * (len(cells) - 1))
        return "".join(
            f'<{tag} style="text-align: {side}">{html.escape(printable(cell))}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in _shortened(rows))
    below = "".join(f"<div>{html.escape(printable(text))}</div>" for text in footer)
    return (
        f"<div><table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"
        f"{below}</div>"
    )


def _rule() -> str:
    """A character for the line below the titles that `print` can write."""
    try:
        "─".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "-"
    return "─"


def _shortened(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The rows; if there are many, the first and the last."""
    hidden = len(rows) - _ROWS
    if hidden <= 0:
        return list(rows)
    half = _ROWS // 2
    return [*rows[:half], (f"... {hidden} more ...",), *rows[half + hidden :]]
