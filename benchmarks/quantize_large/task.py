"""Quantizes a Llama of 13B in memory, and one of 70B into files, from their initialization."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fingerprint import differences
from benchmarks.llama import layer_count
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median
from dormant.text.table import format_bytes

NAME = "quantize_large"
TITLE = "lazy Llamas to nf4 under an enforced limit of memory"
_GIB = 1 << 30
_SCRATCH = Path(__file__).parents[1] / "out"
_SPARE_DISK = 10 * _GIB
_TIMEOUT = 3600  # seconds
_IN_A_LAYER = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Case:
    """A model, where it goes, and how many bytes the process may allocate."""

    size: str
    target: str
    limit: int


FULL = (Case("13B", "memory", 9 * _GIB), Case("70B", "files", 2 * _GIB))
# Nothing is proven about limits there, since importing the libraries takes more than the model.
QUICK = (Case("tiny", "memory", 2 * _GIB), Case("tiny", "files", 2 * _GIB))


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    cases = QUICK if options.quick else FULL
    _compare_with_eager(outcome, cases[0].size, options)
    sheet = Sheet(
        "from recipes, bfloat16 to nf4 with double quantization",
        ("", "parameters", "in bfloat16", "limit", "s", "cpu s", "ns/parameter", "peak", "result"),
    )
    for case in cases:
        _measure(outcome, sheet, case, options)
    sheet.notes.append(
        f"median of {options.repeat} fresh processes; limit: RLIMIT_DATA, which counts all private "
        "writable memory of the process, libraries included; peak: highest resident memory, code "
        "and mapped files included; all times with building the model; the limit is seen to be "
        "enforced before each"
    )
    outcome.sheets.append(sheet)
    return outcome


def _names(layers: list[int]) -> list[str]:
    return [f"model.layers.{layer}.{name}" for layer in layers for name in _IN_A_LAYER]


def _compare_with_eager(outcome: Outcome, size: str, options: Options) -> None:
    """One layer of the model's width, which eager construction can make, too."""
    model = {"size": size, "layers": 1, "names": _names([0])}
    expected = options.call(
        "benchmarks.quantize_large.children:by_bitsandbytes", **model, eager=True
    )
    got = options.call(
        "benchmarks.quantize_large.children:materialize", **model, limit=FULL[0].limit
    )
    what = f"{size} with one layer, beside bitsandbytes and eager: {len(expected)} tensors"
    outcome.check(what, differences(expected, got["digests"]))


def _measure(outcome: Outcome, sheet: Sheet, case: Case, options: Options) -> None:
    layers, note = layer_count(case.size), ""
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    if case.target == "files":
        layers, note = _layers_that_fit(case.size, options)
    names = [f"model.layers.0.{_IN_A_LAYER[0]}", f"model.layers.{layers - 1}.{_IN_A_LAYER[-1]}"]
    model: dict[str, Any] = {"size": case.size, "layers": layers, "names": names}
    expected = options.call(
        "benchmarks.quantize_large.children:by_bitsandbytes", **model, eager=False
    )
    plan = options.call("benchmarks.quantize_large.children:plan", size=case.size, layers=layers)
    samples: list[dict[str, Any]] = []
    for _ in range(options.repeat):
        figures = _sample(case, model, options)
        what = f"{case.size} in {case.target}, {', '.join(names)}"
        outcome.check(what, differences(expected, figures.pop("digests")))
        samples.append(figures)
    seconds = median(samples, "seconds")
    sheet.rows.append(
        [
            f"{case.size}, {layers} layers, into {case.target}",
            f"{plan['elements'] / 1e9:.1f} B",
            format_bytes(plan["nbytes"]),
            format_bytes(case.limit),
            f"{seconds:.1f}",
            f"{median(samples, 'processor'):.1f}",
            f"{seconds / plan['elements'] * 1e9:.2f}",
            format_bytes(int(median(samples, "highest"))),
            format_bytes(int(median(samples, "final"))),
        ]
    )
    if note:
        whole = options.call("benchmarks.quantize_large.children:plan", size=case.size)
        factor = whole["elements"] / plan["elements"]
        sheet.notes.append(f"{note}; extrapolated to all of it: {seconds * factor:.0f} s")
    if case.target == "memory":
        peak = (median(samples, "highest") - median(samples, "before")) / (1 << 20)
        over = peak - median(samples, "final") / (1 << 20)
        sheet.notes.append(aim(f"{case.size}: peak over the final tensors", over, 64, "MiB"))
    outcome.measurements.append(
        {"size": case.size, "target": case.target, "layers": layers, **plan, "samples": samples}
    )


def _sample(case: Case, model: dict[str, Any], options: Options) -> dict[str, Any]:
    """Figures and digests of the chosen layers."""
    children = "benchmarks.quantize_large.children"
    if case.target == "memory":
        figures: dict[str, Any] = options.call(
            f"{children}:materialize", timeout=_TIMEOUT, **model, limit=case.limit
        )
        return figures
    with tempfile.TemporaryDirectory(prefix="quantize-", dir=_SCRATCH) as folder:
        figures = options.call(
            f"{children}:save",
            timeout=_TIMEOUT,
            size=model["size"],
            layers=model["layers"],
            folder=folder,
            limit=case.limit,
        )
        digests = options.call(f"{children}:read", folder=folder, names=model["names"])
    return {**figures, "digests": digests}


def _layers_that_fit(size: str, options: Options) -> tuple[int, str]:
    """As many layers as the disk can take; a note where that is not all."""
    count = layer_count(size)
    some, one = (
        options.call("benchmarks.quantize_large.children:plan", size=size, layers=layers)
        for layers in (2, 1)
    )
    layer = some["quantized"] - one["quantized"]
    free = shutil.disk_usage(_SCRATCH).free - _SPARE_DISK - one["quantized"]
    fitting = max(1, min(count, 1 + free // layer))
    if fitting == count:
        return count, ""
    return fitting, f"{size}: the disk has room for {fitting} of {count} layers"
