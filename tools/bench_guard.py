"""Compares the speed of this checkout with that of another one, in alternation.

`make bench-guard BASE=../other-checkout`: runs the quick sizes of some benchmarks with the packages
of both checkouts in turns, and prints the ratio of the medians of each time. The questions are
those of this checkout. Peers that a benchmark measures too do not change, so their ratios show how
noisy the machine is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
TASKS = ("construct", "operators", "tiny_models", "initialize", "load", "quantize_load")
_TIME = re.compile(r"second|cpu|^(eager|lazy|materialize)$")


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks and prints the table."""
    parser = argparse.ArgumentParser(prog="make bench-guard", description=__doc__)
    parser.add_argument("base", type=Path, help="the other checkout, built (make build)")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"default: {TASKS}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--full", action="store_true", help="full sizes instead of quick ones")
    options = parser.parse_args(arguments)
    packages = {"base": options.base.resolve() / "python", "here": HERE / "python"}
    for name, package in packages.items():
        if not any(package.glob("dormant/**/_C.*.so")):
            parser.error(f"{name}: no built package in {package}. Run `make build` there.")
    times: dict[str, dict[str, list[float]]] = {"base": {}, "here": {}}
    for number in range(options.rounds):
        # Whoever comes second finds warmer caches.
        for name in ("base", "here") if number % 2 == 0 else ("here", "base"):
            for task in options.only or TASKS:
                found = run(task, packages[name], quick=not options.full)
                for figure, seconds in found.items():
                    times[name].setdefault(figure, []).append(seconds)
    for line in table(times["base"], times["here"]):
        print(line)
    return 0


def run(task: str, package: Path, *, quick: bool) -> dict[str, float]:
    """One run of a benchmark with the package of a checkout: its times, by name."""
    with tempfile.TemporaryDirectory() as folder:
        size = ["--quick"] if quick else []
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks", "--only", task, *size),
                *("--repeat", "1", "--out", folder),
            ],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(package)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            print(f"{task} failed with {package}:\n{ended.stderr[-2000:]}", file=sys.stderr)
            return {}
        outcome = json.loads(Path(folder, f"{task}.json").read_text())
    return dict(figures(task, outcome["measurements"]))


def figures(task: str, measurements: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """The times in what a benchmark measured; the median where it took several samples."""
    for measurement in measurements:
        found: dict[str, list[float]] = {}
        for path, number in _leaves(measurement, ()):
            if any(_TIME.search(part) for part in path):
                found.setdefault(".".join(path), []).append(number)
        about = [str(value) for value in measurement.values() if isinstance(value, str | int)]
        for path, samples in found.items():
            yield ", ".join((task, *about, path)), statistics.median(samples)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, (*path, str(key)))
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below, path)
    elif isinstance(value, float):
        yield path, value


def table(base: dict[str, list[float]], here: dict[str, list[float]]) -> Iterator[str]:
    """Lines with both medians and their ratio, the slowest first."""
    rows = []
    for figure in base.keys() & here.keys():
        before, after = statistics.median(base[figure]), statistics.median(here[figure])
        if before > 0:
            rows.append((after / before, before, after, figure))
    yield f"{'here/base':>9}  {'base':>10}  {'here':>10}"
    for ratio, before, after, figure in sorted(rows, reverse=True):
        yield f"{ratio:9.2f}  {before:10.4g}  {after:10.4g}  {figure}"
    for figure in sorted(itertools.chain(base.keys() ^ here.keys())):
        yield f"{'':9}  only in {'base' if figure in base else 'this checkout'}: {figure}"


if __name__ == "__main__":
    sys.exit(main())
