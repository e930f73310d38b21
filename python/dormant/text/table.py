"""Text tables and byte counts for reports and summaries."""

from __future__ import annotations

import html
import importlib
import io
import sys
import textwrap
from collections.abc import Sequence

from dormant.text.printable import printable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_ROWS = 40
_UNFOLDED = 12  # rows that a notebook shows at once
_WIDTH = 80
_NARROWEST = 16  # characters of a column that is cut


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
    header: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[str]
) -> str:
    """A table of at most 80 characters in width, if the names allow it.

    Args:
        header: column titles. The first column is left-aligned, the others are right-aligned. Texts
            of the widest column are cut in the middle where they are too long.
        rows: cells, as many as there are titles. The middle of a long table is left out.
        totals: lines above the table.

    Returns:
        The text, without a newline at its end.
    """
    # Imported here, so that only code that prints a table waits for rich.
    require_rich()
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    cells = [[*map(printable, row)] for row in _shortened(rows)]
    lines = [line for text in totals for line in _wrapped(printable(text))]
    if not cells:
        return "\n".join(lines)
    widths = [
        max(cell_len(row[i]) for row in (header, *cells) if i < len(row))
        for i in range(len(header))
    ]
    names = widths.index(max(widths))  # the column that is cut
    rest = sum(widths) - widths[names] + 2 * (len(widths) - 1)
    width = max(_WIDTH - rest, _NARROWEST)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for position, title in enumerate(header):
        table.add_column(title, justify="right" if position else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(cut(cell, width) if i == names else cell for i, cell in enumerate(row)))
    text = io.StringIO()
    console = Console(
        file=text,
        width=max(_WIDTH, width + rest),
        color_system=None,
        markup=False,
        highlight=False,
    )
    console.print(table)
    drawn = text.getvalue().replace("─", _rule())
    return "\n".join([*lines, *(line.rstrip() for line in drawn.splitlines() if line.strip())])


def _wrapped(line: str) -> list[str]:
    """The line, continued below with two blanks; no word is broken."""
    return textwrap.wrap(
        line,
        _WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def cut(text: str, width: int) -> str:
    """The beginning and the end of a text that takes more than `width` characters."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    gap = "..."
    end = text
    while cell_len(end) > (width - len(gap)) * 2 // 3:
        end = end[1:]
    begin = text[: len(text) - len(end)]
    while cell_len(begin) > width - len(gap) - cell_len(end):
        begin = begin[:-1]
    return begin + gap + end


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
    header: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[str]
) -> str:
    """`format_table` as HTML for notebooks, a long table folded; takes the same arguments."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ("left", *("right",) * (len(cells) - 1))
        return "".join(
            f'<{tag} style="text-align: {side}">{html.escape(printable(cell))}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )

    shown = _shortened(rows)
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in shown)
    above = "".join(f"<div>{html.escape(printable(text))}</div>" for text in totals)
    table = f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"
    if len(shown) > _UNFOLDED:
        table = f"<details><summary>{len(rows)} rows</summary>{table}</details>"
    return f"<div>{above}{table}</div>"


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
