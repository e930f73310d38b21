"""Loads a checkpoint as 4 and 8 bits, each contestant in separate processes."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import Contestant, find
from benchmarks.fingerprint import bits, differences
from benchmarks.load import page_cache
from benchmarks.load.stored import Stored
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.quantize_load.schemes import SCHEMES
from benchmarks.sample import median, peak_over_final, sample
from dormant.text.table import format_bytes

NAME = "quantize_load"
TITLE = "from a checkpoint in bfloat16 to a Llama of 4 or 8 bits"
_SPEED_UPS = {"nf4": 20, "nf4 nested": 20, "int8": 8}  # over transformers
_PEAK = 64  # MiB over the final tensors
_THEIRS = "transformers + bitsandbytes"
_SCRATCH = Path(__file__).parents[1] / "out"  # on a disk, where /tmp may be in memory


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    everyone = find("benchmarks.quantize_load")
    schemes = SCHEMES[1:] if options.quick else SCHEMES
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quantize-", dir=_SCRATCH) as scratch:
        small = _write(scratch, "tiny", options)
        stored = small if options.quick else _write(scratch, "1.1B", options)
        for scheme in schemes:
            _compare(outcome, everyone, stored, scheme, options)
        for scheme in schemes:
            outcome.sheets.append(_measure(outcome, everyone, stored, small, scheme, options))
    return outcome


def _write(folder: str, size: str, options: Options) -> Stored:
    stored = Stored(str(Path(folder) / size), "safetensors", size)
    options.call("benchmarks.load.stored:write", **asdict(stored))
    return stored


def _compare(
    outcome: Outcome, everyone: list[Contestant], stored: Stored, scheme: str, options: Options
) -> None:
    digests = {
        contestant.name: options.call(
            "benchmarks.quantize_load.task:describe",
            module=contestant.module,
            stored=asdict(stored),
            scheme=scheme,
        )
        for contestant in everyone
        if contestant.exact is not None
    }
    expected = digests.pop(_THEIRS)
    for name, got in digests.items():
        what = f"{name}, {scheme}: {len(expected)} tensors"
        outcome.check(what, differences(expected, got))


def _measure(
    outcome: Outcome,
    everyone: list[Contestant],
    stored: Stored,
    small: Stored,
    scheme: str,
    options: Options,
) -> Sheet:
    measured: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
        for contestant in everyone:
            figures = options.call(
                "benchmarks.quantize_load.task:measure",
                module=contestant.module,
                stored=asdict(stored),
                small=asdict(small),
                scheme=scheme,
            )
            measured.setdefault(contestant.name, []).append(figures)
    theirs, nbytes = measured[_THEIRS], stored.nbytes()
    sheet = Sheet(
        f"{stored.size} to {scheme}, warm cache",
        ("", "s", "cpu s", "GB/s", "speed-up", "speed-up, cpu", "peak - final", "peak", "faults"),
    )
    for name, samples in sorted(measured.items(), key=lambda item: median(item[1], "seconds")):
        seconds = median(samples, "seconds")
        limit = name.startswith("limit")
        sheet.rows.append(
            [
                name,
                f"{seconds:.3f}",
                f"{median(samples, 'processor'):.3f}",
                f"{nbytes / seconds / 1e9:.2f}",
                *(
                    f"{median(theirs, clock) / median(samples, clock):.1f}"
                    for clock in ("seconds", "processor")
                ),
                "-" if limit else f"{peak_over_final(samples):+.0f} MiB",
                "-" if limit else format_bytes(int(median(samples, "peak"))),
                f"{median(samples, 'minor_faults'):.0f}",
            ]
        )
        outcome.measurements.append(
            {"contestant": name, "scheme": scheme, "nbytes": nbytes, "samples": samples}
        )
    final = median(measured["dormant"], "final")
    sheet.notes.append(
        f"median of {len(theirs)} fresh processes, {theirs[0]['threads']} threads; "
        f"{format_bytes(nbytes)} of files, {format_bytes(int(final))} of tensors; speed-up over "
        "transformers; peak: highest resident memory above that before"
    )
    for clock in ("seconds", "processor"):
        share = median(measured["dormant"], clock) / median(theirs, clock)
        text = f"{_SPEED_UPS[scheme]} times transformers' speed: {clock}"
        sheet.notes.append(aim(text, share, 1 / _SPEED_UPS[scheme], "x"))
    for name in ("dormant", 'dormant, mmap="never"'):
        over = peak_over_final(measured[name])
        sheet.notes.append(aim(f"{name}: peak over the final tensors", over, _PEAK, "MiB"))
    return sheet


# ---- in the child processes


def describe(module: str, stored: dict[str, str], scheme: str) -> dict[str, str]:
    """Geometry and digest of everything in the state dict."""
    model = importlib.import_module(module).build(Stored(**stored), scheme)
    return {
        name: f"{tuple(tensor.shape)} {tensor.dtype} {bits(tensor)}"
        for name, tensor in model.state_dict().items()
    }


def measure(
    module: str, stored: dict[str, str], small: dict[str, str], scheme: str
) -> dict[str, Any]:
    """One sample, after a small one: imports are not what is compared."""
    build = importlib.import_module(module).build
    checkpoint = Stored(**stored)
    build(Stored(**small), scheme)
    page_cache.fill(checkpoint.files())
    results: list[Any] = []
    figures = sample(lambda: results.append(build(checkpoint, scheme)))
    tensors = results[0].state_dict().values() if results[0] is not None else ()
    return {
        **figures,
        "final": sum(tensor.nbytes for tensor in tensors),
        "threads": torch.get_num_threads(),
    }
