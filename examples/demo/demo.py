"""Runs real work the ordinary way and with Dormant, and compares every bit, time and memory.

The work: a sentence encoder is loaded with its real weights. A Llama of 1.1 billion parameters is
written as a random checkpoint, then loaded as it is stored, cast, and quantized. Each run is a
separate process. A table, a picture and the numbers are written to demo-out/; the exit status is 1
if results differ that should be equal.

    python examples/demo [--layers 22] [--quick] [--out demo-out]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import llama
import minilm
from case import DORMANT, ORDINARY
from measurement import Failed, Measurement, measure
from picture import draw
from results import Result, machine, plain, similarity_table, table
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from dormant.text.table import format_bytes

_WIDTH = 110  # columns if the output is not a terminal
_LOG = "libraries.log"
CASES = {**minilm.CASES, **llama.CASES}


def main() -> int:
    options = _options()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with _apart_from_libraries(options.out / _LOG) as file:
            console = Console(file=file)
            if not console.is_terminal:
                console = Console(file=file, width=_WIDTH)
            return _demonstrate(options, console)
    except OSError as failure:
        print(failure, file=sys.stderr)
        return 2


@contextlib.contextmanager
def _apart_from_libraries(log: Path) -> Iterator[TextIO]:
    """Sends what this process and new ones print to a file, so that it does not break the bars.

    Yields:
        What was the standard output.
    """
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    kept = [os.dup(stream.fileno()) for stream in streams]
    try:
        with log.open("ab") as file:
            for stream in streams:
                os.dup2(file.fileno(), stream.fileno())
        with open(kept[0], "w", encoding=sys.stdout.encoding, closefd=False) as output:
            yield output
    finally:
        for stream, descriptor in zip(streams, kept, strict=True):
            stream.flush()
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
        if not log.stat().st_size:
            log.unlink()


def _demonstrate(options: argparse.Namespace, console: Console) -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=options.out) as scratch:
            results = _run(options, Path(scratch), console)
        return _present(results, options.out, console)
    except (Failed, OSError) as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("demo: interrupted; the temporary checkpoints were removed.")
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=22, help="of the Llama; 22 make 1.1 billion")
    parser.add_argument("--quick", action="store_true", help="a tiny Llama, to see that all works")
    parser.add_argument(
        "--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
        help=f"of {', '.join(CASES)}",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    options = parser.parse_args()
    if options.layers < 1:
        parser.error("--layers: a Llama needs at least one")
    return options


def _run(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Result]:
    """All cases, the ordinary way first; Dormant writes the Llama's checkpoint."""
    config = dict(llama.TINY if options.quick else llama.BILLION)
    if not options.quick:
        config["num_hidden_layers"] = options.layers
    _check_disk(config, scratch)
    checkpoint = scratch / "llama"
    # Without this one, later cases have nothing to load.
    names = [name for name in CASES if name in options.only or name == "llama-write"]
    if not any(name.startswith("llama") for name in options.only):
        names.remove("llama-write")
    results: dict[str, Result] = {}
    with Progress(
        SpinnerColumn("line" if console.options.ascii_only else "dots"),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(table_column=Column(min_width=len("0:00:00"))),
        TextColumn("{task.fields[memory]}"),
        console=console,
        transient=True,
    ) as progress:
        whole = progress.add_task("all", total=2 * len(names), memory="")
        for name in names:
            ways: dict[str, Measurement] = {}
            for way in (ORDINARY, DORMANT):
                folder = checkpoint if name.startswith("llama") else minilm.folder()
                if CASES[name].writes:
                    folder = checkpoint if way == DORMANT else scratch / "ordinary"
                    folder.mkdir()
                    (folder / "config.json").write_text(json.dumps(config))
                ways[way] = _measured(name, way, folder, options, progress)
                progress.update(whole, advance=1)
            shutil.rmtree(scratch / "ordinary", ignore_errors=True)
            results[name] = Result(CASES[name].title, ways[ORDINARY], ways[DORMANT])
            progress.console.print(_line(results[name]))
    return results


def _check_disk(config: dict[str, Any], scratch: Path) -> None:
    width, inner, words = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    a_layer = 4 * width * width + 3 * width * inner
    # In bfloat16, once the ordinary way and once with Dormant.
    needed = 2 * 2 * (config["num_hidden_layers"] * a_layer + 2 * words * width)
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise Failed(
            f"demo: {scratch.parent} has {format_bytes(free)} free, but {format_bytes(needed)} are "
            "needed. Choose another folder with --out, or fewer --layers."
        )


def _measured(
    name: str, way: str, folder: Path, options: argparse.Namespace, progress: Progress
) -> Measurement:
    title = f"{CASES[name].title}, {way}"
    task = progress.add_task(title, total=None, memory="")

    def show(step: str, done: tuple[int, int] | None, above: int | None) -> None:
        completed, total = done or (0, None)
        progress.update(
            task,
            description=f"{title}: {step}",
            completed=completed,
            total=total,
            memory="" if above is None else f"memory +{format_bytes(max(0, above))}",
        )

    log = options.out / _LOG
    try:
        return measure(name, way, folder, log, show, quick=options.quick)
    finally:
        progress.remove_task(task)


def _line(result: Result) -> str:
    ordinary, ours = result.ordinary, result.dormant
    return (
        f"{result.title}: {ordinary.used:.2f} s the ordinary way, {ours.used:.2f} s with Dormant; "
        f"{result.verdict()}"
    )


def _present(results: dict[str, Result], out: Path, console: Console) -> int:
    described = machine()
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        for target in (console, Console(file=file, width=_WIDTH)):
            target.print()
            target.print(table(results))
            sentences = {name: r for name, r in results.items() if name.startswith("minilm")}
            if sentences:
                target.print()
                target.print(similarity_table(minilm.SENTENCES, sentences))
            target.print()
            target.print(described, highlight=False)
    draw(results, described, out / "picture.png")
    numbers = {"machine": described, "results": plain(results)}
    (out / "results.json").write_text(json.dumps(numbers, indent=1))
    differences = [line for result in results.values() for line in result.differences()]
    _print_differences(differences, console)
    console.print(f"The table, a picture and the numbers are in {out}/", highlight=False)
    return 1 if differences else 0


def _print_differences(differences: Sequence[str], console: Console) -> None:
    for line in differences[:10]:
        console.print(line, style="red", markup=False, highlight=False)
    if len(differences) > 10:
        console.print(f"... {len(differences) - 10} more", style="red")
