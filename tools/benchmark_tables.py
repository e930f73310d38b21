"""A hook of mkdocs that fills docs/benchmarks.md with the results in benchmarks/results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import EVERY

PAGE = "benchmarks.md"
PLACE = "<!-- the tables of benchmarks/results -->"
_ESCAPES = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]#|"} | {"<": "&lt;", ">": "&gt;"})
_NONE = (
    "This page has no results: the folder of results is empty. Run `make bench`, then "
    "`DORMANT_BENCHMARKS=benchmarks/out make docs`."
)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for each page."""
    del files
    if page.file.src_uri != PAGE:
        return markdown
    root = Path(config["config_file_path"]).parent
    folder = root / os.environ.get("DORMANT_BENCHMARKS", "benchmarks/results")
    return markdown.replace(PLACE, render(folder))


def render(folder: Path) -> str:
    """The results in a folder as Markdown.

    Args:
        folder: has a JSON file for each task, as `make bench` writes it.

    Returns:
        A section for each task with the day, the command, the machine, its tables, and what was
        compared; one sentence if there is no result.

    Raises:
        ValueError: a file is not the result of a task.
    """
    outcomes = [_read(path) for path in sorted(folder.glob("*.json"))]
    if not outcomes:
        return _NONE
    known = {name: place for place, name in enumerate(EVERY)}
    outcomes.sort(key=lambda outcome: known.get(outcome["task"], len(known)))
    return "\n\n".join(_section(outcome) for outcome in outcomes)


def _read(path: Path) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = json.loads(path.read_text())
        missing = {
            *("date", "command", "machine", "task", "sheets", "compared", "mismatches")
        } - outcome.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"benchmark tables: {path} is not a result of make bench: {error}"
        ) from error
    if missing:
        raise ValueError(
            f"benchmark tables: {path} lacks {', '.join(sorted(missing))}. Measure again, or "
            "remove it."
        )
    return outcome


def _section(outcome: dict[str, Any]) -> str:
    parts = [f"## {_words(outcome['task'])}", _circumstances(outcome), _verdict(outcome)]
    parts += [_table(sheet) for sheet in outcome["sheets"]]
    return "\n\n".join(parts)


def _words(task: str) -> str:
    return task.replace("_", " ").capitalize()


def _circumstances(outcome: dict[str, Any]) -> str:
    machine = outcome["machine"]
    cores = machine["cores"]
    load = machine["load_average"]
    busy = (
        f" Other programs were running: the load average was {load:.1f}. Wall-clock times may "
        "therefore be too long; compare the ratios between rows."
        if load > cores
        else ""
    )
    return (
        f"Measured on {outcome['date']} by `{outcome['command']}` on a machine with {cores} "
        f"{'core' if cores == 1 else 'cores'} "
        f"({_name(machine['processor'])}, {machine['capability']}), torch {machine['torch']}, "
        f"Python {machine['python']}, transparent huge pages {_huge_pages(machine['huge_pages'])}."
        f"{busy}"
    )


def _name(processor: str) -> str:
    return " ".join(processor.replace("(R)", "").replace("(TM)", "").split())


def _huge_pages(setting: str | None) -> str:
    """The selected value of a setting like "always [madvise] never"."""
    if not setting or "[" not in setting:
        return "unknown"
    return setting[setting.index("[") + 1 : setting.index("]")]


def _verdict(outcome: dict[str, Any]) -> str:
    wrong = outcome["mismatches"]
    if wrong:
        listed = "\n".join(f"- {_escaped(line)}" for line in wrong)
        return (
            f"**{len(wrong)} of {outcome['compared']} compared outputs differ; results that "
            f"depend on them are not valid:**\n\n{listed}"
        )
    return f"Outputs compared before timing: {outcome['compared']}, all equal."


def _table(sheet: dict[str, Any]) -> str:
    columns = [_escaped(column) or " " for column in sheet["columns"]]
    rows = [" | ".join(_escaped(cell) for cell in row).join(("| ", " |")) for row in sheet["rows"]]
    rule = "|".join([":--", *["--:"] * (len(columns) - 1)])
    lines = [f"### {_escaped(sheet['title'])}", "", f"| {' | '.join(columns)} |", f"|{rule}|"]
    notes = [f"- {_escaped(note.strip())}" for note in sheet["notes"]]
    return "\n".join([*lines, *rows, *([""] if notes else []), *notes])


def _escaped(text: str) -> str:
    """Text with escapes, so that Markdown shows it unchanged."""
    return text.translate(_ESCAPES)
