"""What `import dormant` costs a program that has imported torch, beside its peers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim

NAME = "imports"
TITLE = "a library imported after torch, in a fresh process each time"
_AIM = 0.1  # seconds of processor time
_LIBRARIES = ("dormant", "safetensors.torch", "accelerate", "transformers")

# In one process, so that what importing torch takes, ten times as long, adds no noise.
_MEASURED = """
import json, sys, time
started = time.process_time()
import torch
before, imported = set(sys.modules), time.process_time()
import {library}
seconds = time.process_time() - imported
print(json.dumps({{
    "torch": imported - started,
    "seconds": seconds,
    "modules": sorted(set(sys.modules) - before),
}}))
"""


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    libraries = _LIBRARIES[:1] if options.quick else _LIBRARIES
    rounds = 1 if options.quick else 3 * options.repeat
    samples: dict[str, list[dict[str, float]]] = {library: [] for library in libraries}
    modules: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as cache:
        # As after an installation, compiled modules are there; the first round writes them.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(rounds + 1):
            for library in libraries:
                printed = subprocess.run(
                    [sys.executable, "-c", _MEASURED.format(library=library)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                sample = json.loads(printed)
                modules[library] = sample.pop("modules")
                if turn > 0:
                    samples[library].append(sample)
    outcome.check("parts of torch that it imports", _parts_of_torch(modules["dormant"]))
    sheet = Sheet(
        f"processor time, median of {rounds} processes, libraries in turns",
        ("", "ms after torch", "fastest", "torch itself", "modules"),
    )
    for library, taken in samples.items():
        outcome.measurements.append({"library": library, "samples": taken})
        seconds = [sample["seconds"] for sample in taken]
        sheet.rows.append(
            [
                library,
                f"{statistics.median(seconds) * 1e3:.0f}",
                f"{min(seconds) * 1e3:.0f}",
                f"{statistics.median(sample['torch'] for sample in taken) * 1e3:.0f}",
                str(len(modules[library])),
            ]
        )
    ours = statistics.median(sample["seconds"] for sample in samples["dormant"])
    sheet.notes.append(aim("dormant, after torch", ours, _AIM, "s"))
    outcome.sheets.append(sheet)
    return outcome


def _parts_of_torch(modules: list[str]) -> list[str]:
    return [name for name in modules if name.startswith("torch.")]
