"""Constructs Llamas of 1.1 to 405 billion parameters, each contestant in separate processes."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.contestants import Contestant, find
from benchmarks.fingerprint import differences, geometry
from benchmarks.llama import llama
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, sample
from dormant.text.table import format_bytes

NAME = "construct"
TITLE = "building a model without its values"
_MIB = 1 << 20
# Seconds and growth that construction shall stay below.
_AIMS = {"7B": (0.3, 50), "405B": (2.0, 300)}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    sizes = ["tiny"] if options.quick else ["1.1B", "7B", "70B", "405B"]
    everyone = find("benchmarks.construct")
    described = {
        contestant.name: options.call(
            "benchmarks.construct.task:describe",
            module=contestant.module,
            sizes=[size for size in sizes if _takes_part(contestant, size)],
        )
        for contestant in everyone
    }
    for size in sizes:
        # Where eager does not fit, the meta device gives its geometry.
        reference = "eager" if size in described["eager"] else 'torch.device("meta")'
        expected = described[reference][size]
        for name, sizes_of in described.items():
            if size in sizes_of and name != reference:
                outcome.check(f"{name} {size}", differences(expected, sizes_of[size]))
        outcome.sheets.append(_measure(outcome, everyone, size, len(expected), options))
    return outcome


def _takes_part(contestant: Contestant, size: str) -> bool:
    sizes = getattr(importlib.import_module(contestant.module), "SIZES", None)
    return sizes is None or size in sizes


def _measure(
    outcome: Outcome, everyone: list[Contestant], size: str, tensors: int, options: Options
) -> Sheet:
    measured: dict[str, list[dict[str, Any]]] = {}
    takers = [contestant for contestant in everyone if _takes_part(contestant, size)]
    for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
        for contestant in takers:
            measured.setdefault(contestant.name, []).append(
                options.call(
                    "benchmarks.construct.task:measure", module=contestant.module, size=size
                )
            )
    fastest = min(median(samples, "seconds") for samples in measured.values())
    sheet = Sheet(
        f"Llama {size}, {tensors} tensors",
        ("", "seconds", "fastest", "processor", "x fastest", "memory growth", "peak above start"),
    )
    for name, samples in sorted(measured.items(), key=lambda item: median(item[1], "seconds")):
        seconds = median(samples, "seconds")
        sheet.rows.append(
            [
                name,
                f"{seconds:.3f}",
                f"{min(s['seconds'] for s in samples):.3f}",
                f"{median(samples, 'processor'):.3f}",
                f"{seconds / fastest:.2f}",
                format_bytes(median(samples, "growth")),
                format_bytes(median(samples, "peak")),
            ]
        )
        outcome.measurements.append({"contestant": name, "size": size, "samples": samples})
    sheet.notes.append(
        f"median of {options.repeat} fresh processes, after a tiny model of the same kind was "
        "built the same way; the meta device and accelerate leave no way to get the values"
    )
    if size in _AIMS:
        ours = measured["dormant.lazy_init()"]
        seconds_aim, growth_aim = _AIMS[size]
        sheet.notes.append(aim("time", median(ours, "seconds"), seconds_aim, "s"))
        sheet.notes.append(aim("growth", median(ours, "growth") / _MIB, growth_aim, "MiB"))
    return sheet


# ---- in the child processes


def describe(module: str, sizes: list[str]) -> dict[str, dict[str, str]]:
    """Names, shapes and dtypes of each size."""
    build = importlib.import_module(module).build
    return {size: geometry(build(lambda size=size: llama(size))) for size in sizes}


def measure(module: str, size: str) -> dict[str, Any]:
    """One sample, after a tiny model of the same kind: imports are not what is compared."""
    build = importlib.import_module(module).build
    build(lambda: llama("tiny"))
    return sample(lambda: build(lambda: llama(size)))
