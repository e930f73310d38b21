"""Initializes layers and a whole Llama, each contestant in separate processes."""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any

import torch

from benchmarks import fingerprint
from benchmarks.child import Unavailable
from benchmarks.contestants import Contestant, find
from benchmarks.initialize.workloads import QUICK, WORKLOADS, workload
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, sample
from dormant.text.table import format_bytes

NAME = "initialize"
TITLE = "from nothing to a model with its initial values"
# At least as many times as fast as eager, by workload and threads.
_AIMS = {
    ("8 Linear(4096, 4096): uniform_", 1): 2.5,
    ("2 Embedding(65536, 1024): normal_", 1): 4.0,
    ("Llama 1.1B", 2): 5.0,
}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    everyone = find("benchmarks.initialize")
    threads = [1] if options.quick else sorted({1, min(2, os.cpu_count() or 1)})
    names, dtypes = (QUICK, ["float32"]) if options.quick else (WORKLOADS, ["float32", "bfloat16"])
    cases = list(itertools.product(names, dtypes))
    notes = _compare(outcome, everyone, cases, threads[-1], options)
    for (name, dtype), count in itertools.product(cases, threads):
        outcome.sheets.append(
            _measure(outcome, everyone, notes[name, dtype], (name, dtype, count), options)
        )
    return outcome


def _compare(
    outcome: Outcome,
    everyone: list[Contestant],
    cases: list[tuple[str, str]],
    threads: int,
    options: Options,
) -> dict[tuple[str, str], dict[str, str]]:
    """Compares everyone's values with eager's; returns what can be said of each, by case."""
    described = {
        c.name: options.call(
            "benchmarks.initialize.task:describe", module=c.module, cases=cases, threads=threads
        )
        for c in everyone
        if c.exact is not None
    }
    notes: dict[tuple[str, str], dict[str, str]] = {}
    for position, case in enumerate(cases):
        notes[case] = {c.name: "none" for c in everyone if c.exact is None}
        eager = described["eager"][position]
        for contestant in everyone:
            if contestant.exact is None:
                continue
            got = described[contestant.name][position]
            if "unavailable" in got:
                notes[case][contestant.name] = f"not available: {got['unavailable']}"
                continue
            what = f"{contestant.name}, {', '.join(case)}"
            differing = fingerprint.differences(eager["values"], got["values"])
            if contestant.name != "eager":
                outcome.check(
                    f"{what}: geometry", fingerprint.differences(eager["geometry"], got["geometry"])
                )
                if contestant.exact:
                    outcome.check(f"{what}: bits", differing)
            notes[case][contestant.name] = (
                f"other: {len(differing)}/{len(eager['values'])}" if differing else "bits of eager"
            )
    return notes


def _measure(
    outcome: Outcome,
    everyone: list[Contestant],
    notes: dict[str, str],
    case: tuple[str, str, int],
    options: Options,
) -> Sheet:
    name, dtype, threads = case
    takers = [c for c in everyone if not notes[c.name].startswith("not available")]
    measured: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
        for contestant in list(takers):
            try:
                figures = options.call(
                    "benchmarks.initialize.task:measure",
                    module=contestant.module,
                    name=name,
                    dtype=dtype,
                    threads=threads,
                )
            except Unavailable as reason:  # those without values were not tried before
                takers.remove(contestant)
                notes[contestant.name] = f"not available: {reason}"
                continue
            measured.setdefault(contestant.name, []).append(figures)
    elements, nbytes = _size(name, dtype)
    seconds = {contestant: median(samples, "seconds") for contestant, samples in measured.items()}
    limit = min(time for contestant, time in seconds.items() if contestant.startswith("memset"))
    sheet = Sheet(
        f"{name}, {dtype}, {threads} thread(s), {elements / 1e6:.1f} M elements",
        (
            "",
            "s",
            "cpu s",
            "ns/element",
            "GB/s",
            "x memset",
            "speed-up",
            "peak",
            "values",
        ),
    )
    for contestant, time in sorted(seconds.items(), key=lambda item: item[1]):
        samples = measured[contestant]
        sheet.rows.append(
            [
                contestant,
                f"{time:.3f}",
                f"{median(samples, 'processor'):.3f}",
                f"{time / elements * 1e9:.2f}",
                f"{nbytes / time / 1e9:.2f}",
                f"{time / limit:.1f}",
                f"{seconds['eager'] / time:.2f}",
                format_bytes(median(samples, "peak")),
                notes[contestant],
            ]
        )
        outcome.measurements.append(
            {
                "contestant": contestant,
                "workload": name,
                "dtype": dtype,
                "threads": threads,
                "elements": elements,
                "nbytes": nbytes,
                "values": notes[contestant],
                "samples": samples,
            }
        )
    sheet.notes.append(
        f"median of {options.repeat} fresh processes; speed-up is over eager; x memset is the time "
        f"beside the faster memset; the tensors take {format_bytes(nbytes)}; "
        '"other" counts tensors whose values are not eager\'s, which that way does not promise'
    )
    for contestant, note in notes.items():
        if note.startswith("not available"):
            sheet.notes.append(f"{contestant}: {note}")
    if (name, threads) in _AIMS and dtype == "float32":
        wanted = _AIMS[name, threads]
        share = seconds["dormant"] / seconds["eager"]
        sheet.notes.append(aim(f"{wanted:g} times eager's speed: time", share, 1 / wanted, "x"))
    return sheet


def _size(name: str, dtype: str) -> tuple[int, int]:
    """Elements and bytes of the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("meta"):
            parameters = list(workload(name).make().parameters())
    finally:
        torch.set_default_dtype(before)
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


# ---- in the child processes


def _prepare(dtype: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(0)


def describe(
    module: str, cases: list[tuple[str, str]], threads: int
) -> list[dict[str, str | dict[str, str]]]:
    """Geometry and digests of every tensor, or why there are none, for each workload and dtype."""
    build = importlib.import_module(module).build
    answers: list[dict[str, str | dict[str, str]]] = []
    for name, dtype in cases:
        _prepare(dtype, threads)
        try:
            model = build(workload(name))
        except NotImplementedError as reason:
            answers.append({"unavailable": str(reason)})
            continue
        answers.append(
            {"geometry": fingerprint.geometry(model), "values": fingerprint.values(model)}
        )
        del model
    return answers


def measure(module: str, name: str, dtype: str, threads: int) -> dict[str, Any]:
    """One sample, after a tiny model of the same kind: imports are not what is compared."""
    contestant = importlib.import_module(module)
    build = contestant.build
    _prepare(dtype, threads)
    if hasattr(contestant, "prepare"):
        contestant.prepare(workload(name))
    build(workload(workload(name).small))
    torch.manual_seed(0)
    return sample(lambda: build(workload(name)))
