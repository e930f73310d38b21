"""Loads a file into a model whose constructor initializes everything."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.contestants import find
from benchmarks.fingerprint import differences, values
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet
from benchmarks.sample import median, sample
from benchmarks.skip_init.models import INITIALIZERS, build_model
from dormant.text.table import format_bytes

NAME = "skip_init"
TITLE = "loading into a model whose constructor initializes everything"
_TASK = "benchmarks.skip_init.task"


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    width, layers = (64, 2) if options.quick else (1024, 24)
    everyone = find("benchmarks.skip_init")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        for initializer in INITIALIZERS:
            case: dict[str, Any] = {
                "path": str(path),
                "width": width,
                "layers": layers,
                "initializer": initializer,
            }
            expected = options.call(f"{_TASK}:save", **case)
            for each in everyone:
                got = options.call(f"{_TASK}:describe", module=each.module, **case)
                outcome.check(f"{each.name}, {initializer}", differences(expected, got))
            measured: dict[str, list[dict[str, Any]]] = {each.name: [] for each in everyone}
            for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
                for each in everyone:
                    measured[each.name].append(
                        options.call(f"{_TASK}:measure", module=each.module, **case)
                    )
            outcome.sheets.append(_sheet(initializer, measured, path.stat().st_size, options))
            outcome.measurements += [
                {"contestant": name, "initializer": initializer, "samples": samples}
                for name, samples in measured.items()
            ]
    return outcome


def _sheet(
    initializer: str, measured: dict[str, list[dict[str, Any]]], nbytes: int, options: Options
) -> Sheet:
    sheet = Sheet(initializer, ("", "seconds", "processor seconds", "peak memory"))
    for name, samples in sorted(measured.items(), key=lambda item: -median(item[1], "processor")):
        seconds, processor = median(samples, "seconds"), median(samples, "processor")
        peak = format_bytes(median(samples, "peak"))
        sheet.rows.append([name, f"{seconds:.2f}", f"{processor:.2f}", peak])
    sheet.notes.append(
        f"median of {options.repeat} fresh processes, {torch.get_num_threads()} threads, warm "
        f"cache; {format_bytes(nbytes)} in float32; until every page has been read once; peak: "
        "highest resident memory above that before, pages of the file included"
    )
    return sheet


# ---- in the child processes


def save(path: str, width: int, layers: int, initializer: str) -> dict[str, str]:
    """Writes the file, and returns digests of its tensors."""
    torch.manual_seed(0)
    model = build_model(width, layers, initializer)
    dormant.save(model, path, progress=False)
    return values(model)


def describe(module: str, **case: Any) -> dict[str, str]:
    """Digests of the loaded tensors."""
    return values(importlib.import_module(module).build(**case))


def measure(module: str, **case: Any) -> dict[str, Any]:
    """One sample, after a model of one layer has paid for imports."""
    build = importlib.import_module(module).build
    with tempfile.TemporaryDirectory() as folder:
        small = {**case, "path": f"{folder}/model.safetensors", "width": 8, "layers": 1}
        save(**small)
        build(**small)

    def load_and_read() -> object:
        model = build(**case)
        for parameter in model.parameters():
            parameter.detach().view(-1)[::1024].sum()
        return model

    return sample(load_and_read)
