"""`dormant bench` runs a few measurements without a checkout."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from dormant.cli.measurements import (
    MEASUREMENTS,
    Job,
    Sample,
    run_job,
    write_checkpoint,
)
from dormant.cli.screen import format_columns
from dormant.reporting.progress import wants_bar
from dormant.text.table import format_bytes
from dormant_command.outcome import NOT_OK, OK, Outcome

_R = TypeVar("_R")
_T = TypeVar("_T")


def run(options: argparse.Namespace) -> Outcome:
    """The times, the memory, and whether the outputs were equal."""
    skipped = {}
    results = []
    with tempfile.TemporaryDirectory(prefix="dormant-bench-", dir=options.folder) as name:
        folder = Path(name)
        _tell("writing a checkpoint")
        first = Job("load", "eager", options.size, folder, options.threads)
        parameters = _in_new_process(write_checkpoint, first)
        for measurement in dict.fromkeys(options.names or MEASUREMENTS):
            obstacle = MEASUREMENTS[measurement].obstacle()
            if obstacle is not None:
                skipped[measurement] = obstacle
                continue
            results.append(_measure(measurement, folder, options))
    data = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": options.threads or torch.get_num_threads(),
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "size": options.size,
        "parameters": parameters,
        "results": results,
        "skipped": skipped,
    }
    equal = all(result["equal"] is not False for result in results)
    return Outcome(data, _text(data), OK if equal else NOT_OK)


def _measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    measurement = MEASUREMENTS[name]
    samples: dict[str, list[Sample]] = {way: [] for way in measurement.ways}
    for number in range(options.repeat):
        for way, taken in samples.items():
            _tell(f"{name}: {way}, {number + 1} of {options.repeat}")
            job = Job(name, way, options.size, folder, options.threads)
            taken.append(_in_new_process(run_job, job))
    digests = {sample.digest for taken in samples.values() for sample in taken}
    return {
        "name": name,
        "title": measurement.title,
        # None if there are no values to compare, as after lazy construction.
        "equal": None if digests == {None} else len(digests) == 1,
        "ways": {
            way: {
                "seconds": [sample.seconds for sample in taken],
                "median_seconds": statistics.median(sample.seconds for sample in taken),
                "peak_bytes": max(
                    (sample.peak_bytes for sample in taken if sample.peak_bytes is not None),
                    default=None,
                ),
            }
            for way, taken in samples.items()
        },
    }


def _in_new_process(function: Callable[[_T], _R], argument: _T) -> _R:
    context = multiprocessing.get_context("spawn")
    try:
        # Ctrl-C reaches both processes; the new one just ends.
        with ProcessPoolExecutor(
            1, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
        ) as pool:
            return pool.submit(function, argument).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the system killed a run, probably because memory ran out. Choose a smaller --size."
        ) from error


def _tell(what: str) -> None:
    if wants_bar(None):
        print(f"\r\033[K{what} ...", end="\r", file=sys.stderr, flush=True)


def _text(data: dict[str, Any]) -> str:
    machine = data["machine"]
    if wants_bar(None):
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    rows = [
        (
            result["title"] if number == 0 else "",
            way,
            f"{measured['median_seconds']:.3f} s",
            "" if measured["peak_bytes"] is None else format_bytes(measured["peak_bytes"]),
            "" if number or result["equal"] is None else "equal" if result["equal"] else "DIFFER",
        )
        for result in data["results"]
        for number, (way, measured) in enumerate(result["ways"].items())
    ]
    lines = [
        f"a Llama of {data['parameters']:,} parameters; torch {machine['torch']}, "
        f"{machine['threads']} threads on {machine['cores']} cores",
        "",
        format_columns(("what", "way", "median", "peak memory", "outputs"), rows, right=(2, 3)),
        *(f"{name}: skipped, {reason}" for name, reason in data["skipped"].items()),
    ]
    return "\n".join(lines)
