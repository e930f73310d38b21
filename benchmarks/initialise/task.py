"""Initialises layers and a whole Llama, each contestant in processes of its own."""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any

import torch

from benchmarks import fingerprint
from benchmarks.child import Unavailable, call
from benchmarks.contestants import Contestant, find
from benchmarks.initialise.workloads import QUICK, WORKLOADS, workload
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, sample
from dormant.table import format_bytes

NAME = "initialise"
TITLE = "from nothing to a model with its initial values"
# At least as many times as fast as eager, by workload and threads.
_AIMS = {
    ("8 Linear(4096, 4096): uniform_", 1): 2.5,
    ("2 Embedding(65536, 1024): normal_", 1): 4.0,
    ("Llama 1.1B", 2): 5.0,
}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    everyone = find("benchmarks.initialise")
    threads = sorted({1, min(2, os.cpu_count() or 1)})
    for name, dtype in itertools.product(
        QUICK if options.quick else WORKLOADS, ("float32", "bfloat16")
    ):
        notes = _compare(outcome, everyone, name, dtype, threads[-1])
        for count in threads:
            outcome.sheets.append(
                _measure(outcome, everyone, notes, (name, dtype, count), options.repeat)
            )
    return outcome


def _compare(
    outcome: Outcome, everyone: list[Contestant], name: str, dtype: str, threads: int
) -> dict[str, str]:
    """Compares everyone's values with eager's; returns what can be said of each."""
    described = {}
    notes = {contestant.name: "none" for contestant in everyone if contestant.exact is None}
    for contestant in everyone:
        if contestant.exact is None:
            continue
        try:
            described[contestant.name] = call(
                "benchmarks.initialise.task:describe",
                module=contestant.module,
                name=name,
                dtype=dtype,
                threads=threads,
            )
        except Unavailable as reason:
            notes[contestant.name] = f"not available: {reason}"
    eager = described["eager"]
    for contestant in everyone:
        got = described.get(contestant.name)
        if got is None:
            continue
        what = f"{contestant.name}, {name}, {dtype}"
        differing = fingerprint.differences(eager["values"], got["values"])
        if contestant.name != "eager":
            outcome.check(
                f"{what}: geometry", fingerprint.differences(eager["geometry"], got["geometry"])
            )
            if contestant.exact:
                outcome.check(f"{what}: bits", differing)
        notes[contestant.name] = (
            "bits of eager" if not differing else f"other: {len(differing)}/{len(eager['values'])}"
        )
    return notes


def _measure(
    outcome: Outcome,
    everyone: list[Contestant],
    notes: dict[str, str],
    case: tuple[str, str, int],
    repeat: int,
) -> Sheet:
    name, dtype, threads = case
    takers = [c for c in everyone if not notes[c.name].startswith("not available")]
    measured: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for _ in range(repeat):  # in turns, so that a busy minute hits all of them
        for contestant in takers:
            try:
                measured.setdefault(contestant.name, []).append(
                    call(
                        "benchmarks.initialise.task:measure",
                        module=contestant.module,
                        name=name,
                        dtype=dtype,
                        threads=threads,
                    )
                )
            except Unavailable as reason:
                absent[contestant.name] = f"not available: {reason}"
    measured = {name: samples for name, samples in measured.items() if samples}
    elements, nbytes = _size(name, dtype)
    seconds = {contestant: median(samples, "seconds") for contestant, samples in measured.items()}
    limit = min(time for contestant, time in seconds.items() if contestant.startswith("memset"))
    sheet = Sheet(
        f"{name}, {dtype}, {threads} thread(s), {elements / 1e6:.1f} M elements",
        (
            "",
            "seconds",
            "processor",
            "ns/element",
            "GB/s",
            "x memset",
            "x eager speed",
            "peak memory",
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
        f"median of {repeat} fresh processes; the tensors take {format_bytes(nbytes)}; "
        '"other" counts tensors whose values are not eager\'s, which that way does not promise'
    )
    for contestant, note in {**notes, **absent}.items():
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


def describe(module: str, name: str, dtype: str, threads: int) -> dict[str, dict[str, str]]:
    """Geometry and digests of every tensor."""
    _prepare(dtype, threads)
    model = importlib.import_module(module).build(workload(name))
    return {"geometry": fingerprint.geometry(model), "values": fingerprint.values(model)}


def measure(module: str, name: str, dtype: str, threads: int) -> dict[str, Any]:
    """One sample, after a tiny model of the same kind: imports are not what is compared."""
    build = importlib.import_module(module).build
    _prepare(dtype, threads)
    build(workload(workload(name).small))
    torch.manual_seed(0)
    return sample(lambda: build(workload(name)))
