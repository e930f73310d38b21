"""Loads a file from a server on this machine, each contestant in separate processes."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks.contestants import find
from benchmarks.fingerprint import bits, differences
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet
from benchmarks.remote.server import serving
from benchmarks.sample import median, sample
from dormant.text.table import format_bytes

NAME = "remote"
TITLE = "a checkpoint from a server by HTTP"
_OUT = Path(__file__).parent.parent / "out"
# What it is like, seconds before each answer, and bytes per second of a connection.
_SERVERS = (("at once, as fast as it goes", 0.0, 0.0), ("after 20 ms, 60 MB/s", 0.02, 60e6))
_DTYPES = {"same dtype": torch.bfloat16, "float32": torch.float32}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    layers, width = (8, 256) if options.quick else (64, 2048)
    everyone = find("benchmarks.remote")
    _OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_OUT) as folder:
        file = Path(folder, "model.safetensors")
        torch.manual_seed(0)
        state = {f"layers.{i}.weight": torch.randn(width, width).bfloat16() for i in range(layers)}
        safetensors.torch.save_file(state, file)
        nbytes = sum(tensor.nbytes for tensor in state.values())
        for title, latency, speed in _SERVERS:
            with serving(file, latency, speed) as url:
                for cast, dtype in _DTYPES.items():
                    case = {
                        "url": url,
                        "dtype": str(dtype).removeprefix("torch."),
                        "folder": folder,
                    }
                    expected = {name: bits(tensor.to(dtype)) for name, tensor in state.items()}
                    for contestant in everyone:
                        got = options.call(
                            "benchmarks.remote.task:describe", module=contestant.module, **case
                        )
                        outcome.check(
                            f"{contestant.name}, {title}, {cast}", differences(expected, got)
                        )
                    _measure(options, outcome, f"{format_bytes(nbytes)} {title}, {cast}", case)
    return outcome


def _measure(options: Options, outcome: Outcome, title: str, case: dict[str, Any]) -> None:
    measured: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
        for contestant in find("benchmarks.remote"):
            measured.setdefault(contestant.name, []).append(
                options.call("benchmarks.remote.task:measure", module=contestant.module, **case)
            )
    sheet = Sheet(title, ("", "seconds", "processor", "peak memory", "of the tensors"))
    for name, samples in sorted(measured.items(), key=lambda item: median(item[1], "seconds")):
        sheet.rows.append(
            [
                name,
                f"{median(samples, 'seconds'):.2f}",
                f"{median(samples, 'processor'):.2f}",
                format_bytes(median(samples, "peak")),
                format_bytes(median(samples, "growth")),
            ]
        )
        outcome.measurements.append({"contestant": name, "case": title, "samples": samples})
    sheet.notes.append(
        f"median of {options.repeat} fresh processes, {torch.get_num_threads()} thread(s); the "
        "server is a process of this machine and takes its share of the processors"
    )
    outcome.sheets.append(sheet)


# ---- in the child processes


def describe(module: str, url: str, dtype: str, folder: str) -> dict[str, str]:
    """Digests of the tensors."""
    state = importlib.import_module(module).build(url, getattr(torch, dtype), folder)
    return {name: bits(tensor) for name, tensor in state.items()}


def measure(module: str, url: str, dtype: str, folder: str) -> dict[str, Any]:
    """One sample."""
    build = importlib.import_module(module).build
    return sample(lambda: build(url, getattr(torch, dtype), folder))
