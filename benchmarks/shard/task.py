"""Cuts an eighth out of a large normal_ tensor, each contestant in separate processes."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.contestants import find
from benchmarks.fingerprint import bits
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, sample
from benchmarks.shard.part import PARTS
from dormant.text.table import format_bytes

NAME = "shard"
TITLE = f"1/{PARTS} of a large normal_ tensor"
# Share of our time for the whole tensor, by dimension.
_AIMS = {0: 1 / 6, 1: 1 / 3}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    rows, columns = (1024, 1000) if options.quick else (16384, 16384)
    everyone = find("benchmarks.shard")
    for dim in (0, 1):
        case = {"rows": rows, "columns": columns, "dim": dim}
        digests = {
            c.name: options.call("benchmarks.shard.task:describe", module=c.module, **case)
            for c in everyone
        }
        expected = digests.pop("eager, the whole")
        for name, digest in digests.items():
            outcome.check(f"{name}, dim {dim}", [] if digest == expected else ["bits"])
        measured: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
            for contestant in everyone:
                measured.setdefault(contestant.name, []).append(
                    options.call("benchmarks.shard.task:measure", module=contestant.module, **case)
                )
        whole = median(measured["dormant, the whole"], "seconds")
        sheet = Sheet(
            f"{rows} x {columns} float32, part along dim {dim}",
            ("", "seconds", "processor", "ns/element of the part", "share of whole", "peak memory"),
        )
        elements = rows * columns // PARTS
        for name, samples in sorted(measured.items(), key=lambda item: median(item[1], "seconds")):
            seconds = median(samples, "seconds")
            sheet.rows.append(
                [
                    name,
                    f"{seconds:.3f}",
                    f"{median(samples, 'processor'):.3f}",
                    f"{seconds / elements * 1e9:.2f}",
                    f"{seconds / whole:.3f}",
                    format_bytes(median(samples, "peak")),
                ]
            )
            outcome.measurements.append({"contestant": name, **case, "samples": samples})
        ours = median(measured["dormant, the part"], "seconds")
        sheet.notes += [
            f"median of {options.repeat} fresh processes, {torch.get_num_threads()} thread(s); "
            f"the part takes {format_bytes(elements * 4)}, the whole "
            f"{format_bytes(elements * 4 * PARTS)}",
            aim("share of our time for the whole", ours / whole, _AIMS[dim], ""),
        ]
        outcome.sheets.append(sheet)
    return outcome


# ---- in the child processes


def describe(module: str, rows: int, columns: int, dim: int) -> str:
    """Digest of the part."""
    torch.manual_seed(0)
    shard = importlib.import_module(module).build(rows, columns, dim)
    return f"{tuple(shard.shape)} {shard.stride()} {shard.dtype} {bits(shard)}"


def measure(module: str, rows: int, columns: int, dim: int) -> dict[str, Any]:
    """One sample, after a small one."""
    build = importlib.import_module(module).build
    build(64, 64, dim)
    torch.manual_seed(0)
    return sample(lambda: build(rows, columns, dim))
