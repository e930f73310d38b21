"""Runs the benchmarks: `python -m benchmarks [--only NAME] [--repeat N] [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks import EVERY, TASKS
from benchmarks.machine import headline
from benchmarks.options import Options

OUT = Path(__file__).parent / "out"


def command(name: str, options: Options) -> str:
    """What measures one task in this way again."""
    words = [f"--only {name}", f"--repeat {options.repeat}"]
    words += [f"--{flag}" for flag in ("quick", "large") if getattr(options, flag)]
    return f'make bench BENCH_ARGS="{" ".join(words)}"'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=EVERY, metavar="NAME", help=f"one of {', '.join(EVERY)}"
    )
    parser.add_argument("--repeat", type=int, default=3, help="samples of each figure (default 3)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it all run?")
    parser.add_argument("--large", action="store_true", help="load: 4 GB too, and every dtype")
    parser.add_argument("--fork", action="store_true", help="start processes sooner (as --quick)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for NAME.json")
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error(f"--repeat must be at least 1, got {arguments.repeat}")
    options = Options(
        repeat=arguments.repeat,
        quick=arguments.quick,
        large=arguments.large,
        fork=arguments.fork or arguments.quick,
    )
    console = Console(width=max(Console().width, 120))
    console.print(headline(), markup=False, highlight=False)
    equal = True
    for name in arguments.only or TASKS:
        task = importlib.import_module(f"benchmarks.{name}")
        console.rule(f"{name}: {task.TITLE}")
        started = time.perf_counter()
        outcome = task.run(options)
        outcome.print(console)
        path = outcome.save(arguments.out, command(name, options))
        console.print(f"  {time.perf_counter() - started:.0f} s; {path}", markup=False)
        equal = equal and not outcome.mismatches
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
