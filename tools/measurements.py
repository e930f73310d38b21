"""Writes what `make demo` measured into README.md and docs/: a table and a picture.

`python tools/measurements.py` takes the numbers of examples/demo/measured.json. With the path of
demo-out/results.json, which a new run of `make demo` left, it takes over that run first.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "demo" / "measured.json"
PICTURE = ROOT / "docs" / "images" / "measurements.svg"
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
# Case of the demo: what the table says, what the picture says.
TASKS = {
    "llama-write": ("initialize with random values and write to files", "initialize and write"),
    "llama-bfloat16": ("load a bfloat16 file as stored", "load as stored"),
    "llama-float32": ("load a bfloat16 file as float32", "load as float32"),
    "llama-nf4": ("load a bfloat16 file as nf4", "load as nf4"),
    "llama-int8": ("load a bfloat16 file as int8", "load as int8"),
}
WAYS = {"ordinary": ("transformers", "#c9651f"), "dormant": ("Dormant", "#1e66b0")}
_BEGIN, _END = "<!-- measured by make demo -->\n", "<!-- end -->\n"
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def main() -> None:
    """Rewrites the picture and the tables."""
    if len(sys.argv) > 1:
        taken = take_over(json.loads(Path(sys.argv[1]).read_text()))
        DATA.write_text(json.dumps(taken, indent=1) + "\n")
    measured = json.loads(DATA.read_text())
    PICTURE.write_text(picture(measured))
    for page in PAGES:
        page.write_text(with_table(page.read_text(), measured))


def take_over(results: dict[str, Any]) -> dict[str, Any]:
    """What a run of the demo measured, as the pages show it."""
    rows = {
        name: {
            "weights": _bytes(case["dormant"]["nbytes"]),
            **{
                way: {
                    "seconds": round(case[way]["used"], 2),
                    "peak": _bytes(case[way]["peak"]),
                }
                for way in WAYS
            },
        }
        for name, case in results["results"].items()
        if name in TASKS
    }
    differing = [name for name, case in results["results"].items() if case["differences"]]
    if differing or rows.keys() != TASKS.keys():
        raise ValueError(
            "measurements: these results of make demo are incomplete, or outputs differ: "
            f"{', '.join(differing or sorted(TASKS.keys() - rows.keys()))}"
        )
    date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    return {"date": date, "command": "make demo", "machine": results["machine"], "rows": rows}


def table(measured: dict[str, Any]) -> str:
    """The measurements as a table in Markdown, under the machine in words."""
    lines = [
        "| Llama, 1.1 billion parameters | transformers: time, peak memory | "
        "Dormant: time, peak memory | final weights |",
        "|---|---|---|---|",
    ]
    for name, (task, _) in TASKS.items():
        row = measured["rows"][name]
        ways = [f"{_seconds(row[way]['seconds'])}, {row[way]['peak']}" for way in WAYS]
        lines.append(f"| {task} | {' | '.join(ways)} | {row['weights']} |")
    note = (
        f"One run of `{measured['command']}` on {_day(measured['date'])}; "
        f"{measured['machine']}; files in the page cache."
    )
    return "\n".join([*lines, "", note, ""])


def with_table(page: str, measured: dict[str, Any]) -> str:
    """A page whose marked place holds the table."""
    place = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if len(place.findall(page)) != 1:
        raise ValueError(f"measurements: a page must have one place between {_BEGIN} and {_END}")
    return place.sub(lambda _: f"{_BEGIN}\n{table(measured)}\n{_END}", page)


def picture(measured: dict[str, Any]) -> str:
    """The measurements as bars: seconds on the left, peak memory on the right."""
    rows = {label: measured["rows"][name] for name, (_, label) in TASKS.items()}
    height = 96 + 46 * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" fill="#263238">',
        "  <title>Time and peak memory of transformers and of Dormant, for a Llama of 1.1 billion "
        "parameters</title>",
        f'  <rect width="760" height="{height}" rx="8" fill="#ffffff"/>',
        '  <g font-weight="600"><text x="168" y="30">seconds</text>'
        '<text x="468" y="30">peak memory</text></g>',
    ]
    panels = (
        (168, [[row[way]["seconds"] for way in WAYS] for row in rows.values()], _seconds),
        (468, [[_count(row[way]["peak"]) for way in WAYS] for row in rows.values()], _bytes),
    )
    for number, label in enumerate(rows):
        parts.append(f'  <text x="156" y="{72 + 46 * number}" text-anchor="end">{label}</text>')
    for left, values, say in panels:
        longest = max(max(pair) for pair in values)
        for number, pair in enumerate(values):
            for place, (value, (_, color)) in enumerate(zip(pair, WAYS.values(), strict=True)):
                top, width = 48 + 46 * number + 18 * place, max(1.5, 200 * value / longest)
                parts.append(
                    f'  <rect x="{left}" y="{top}" width="{width:.1f}" height="16" fill="{color}"/>'
                    f'<text x="{left + width + 6:.1f}" y="{top + 13}">{say(value)}</text>'
                )
    for place, (name, color) in enumerate(WAYS.values()):
        left = 168 + 130 * place
        parts.append(
            f'  <rect x="{left}" y="{height - 32}" width="14" height="14" fill="{color}"/>'
            f'<text x="{left + 20}" y="{height - 20}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def _bytes(count: float) -> str:
    unit = max((name for name in _UNITS if count >= _UNITS[name]), key=lambda name: _UNITS[name])
    number = count / _UNITS[unit]
    return f"{number:.1f} {unit}" if unit == "GiB" else f"{number:.0f} {unit}"


def _count(text: str) -> float:
    number, unit = text.split()
    return float(number) * _UNITS[unit]


def _day(date: str) -> str:
    day = datetime.date.fromisoformat(date)
    return f"{day:%B} {day.day}, {day.year}"


if __name__ == "__main__":
    main()
