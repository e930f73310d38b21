"""Building whole models of tiny width, lazily and eagerly: what recording itself costs."""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks import fingerprint
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim

NAME = "tiny_models"
TITLE = "whole models so narrow that eager has next to nothing to compute"
_AIM = 1.5
_CATALOG = Path(__file__).parent.parent / "tests" / "models"
MODELS: dict[str, tuple[str, ...]] = {
    "transformers": (
        "BertModel",
        "LlamaForCausalLM",
        "GPT2LMHeadModel",
        "T5ForConditionalGeneration",
        "ViTForImageClassification",
        "Wav2Vec2ForCTC",
        "Blip2ForConditionalGeneration",
    ),
    "timm": ("vit_base_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224"),
    "torchvision": ("resnet18", "mobilenet_v3_small"),
}


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    rounds = 1 if options.quick else 5 * options.repeat
    names = {lib: models[:1] for lib, models in MODELS.items()} if options.quick else MODELS
    sheet = Sheet(
        f"processor time, one thread, median of {rounds} rounds, eager and lazy in turns",
        ("", "tensors", "operators", "eager ms", "lazy ms", "ratio", "ratio of the fastest"),
    )
    ratios = []
    for library, models in names.items():
        for name, figures in options.call(
            "benchmarks.tiny_models:measure", library=library, names=models, rounds=rounds
        ).items():
            outcome.check(f"{library} {name}", figures["differing"])
            outcome.measurements.append({"library": library, "model": name, **figures})
            eager, lazy = (statistics.median(figures[way]) for way in ("eager", "lazy"))
            ratios.append(lazy / eager)
            sheet.rows.append(
                [
                    name,
                    str(figures["tensors"]),
                    str(figures["operators"]),
                    f"{eager * 1e3:.1f}",
                    f"{lazy * 1e3:.1f}",
                    f"{lazy / eager:.2f}",
                    f"{min(figures['lazy']) / min(figures['eager']):.2f}",
                ]
            )
    sheet.notes += [
        "operators: those that materializing each model runs; recording saw more, "
        "which later writes made superfluous",
        aim("median ratio", statistics.median(ratios), _AIM, "x"),
        aim("largest ratio", max(ratios), _AIM, "x"),
    ]
    outcome.sheets.append(sheet)
    return outcome


# ---- in the child process


def measure(library: str, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Compares the values of each model, then times its construction both ways."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(_CATALOG))
    from libraries import models, prepare  # the catalog that the tests build, too

    prepare()
    torch.set_num_threads(1)
    rows = {row.name: row for row in models(library)}
    figures = {}
    for name in names:
        build = rows[name].build
        eager = _seeded(build)
        with dormant.lazy_init():
            lazy = _seeded(build)
        report = dormant.materialize(lazy, progress=False)
        expected = fingerprint.geometry(eager), fingerprint.values(eager)
        got = fingerprint.geometry(lazy), fingerprint.values(lazy)
        figures[name] = {
            "tensors": len(expected[0]),
            "operators": report.operators,
            "differing": [
                difference
                for left, right in zip(expected, got, strict=True)
                for difference in fingerprint.differences(left, right)
            ],
            "eager": [],
            "lazy": [],
        }
        del eager, lazy
        for _ in range(rounds):
            figures[name]["eager"].append(_time(build))
            with dormant.lazy_init():
                figures[name]["lazy"].append(_time(build))
    return figures


def _seeded(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(0)
    return build()


def _time(build: Callable[[], torch.nn.Module]) -> float:
    gc.collect()
    started = time.process_time()
    model = _seeded(build)
    seconds = time.process_time() - started
    del model
    return seconds
