"""`dormant init` writes a checkpoint with random weights for a model that is never in memory."""

from __future__ import annotations

import argparse
import time

import torch

from dormant.cli.casting import dtype_of
from dormant.cli.destination import files_below, is_folder, new_file, new_folder, output
from dormant.cli.models import constructor
from dormant.reporting.memory import PeakMemory
from dormant.saving.api import save
from dormant.text.table import format_bytes, format_count
from dormant_command.outcome import Outcome

_SAFETENSORS = ".safetensors"


def run(options: argparse.Namespace) -> Outcome:
    """What was written."""
    started = time.perf_counter()
    peak = PeakMemory()
    out = output(options.out)
    to_folder = is_folder(out, (_SAFETENSORS,))
    construct = constructor(options.model, dtype_of(options.dtype))
    with (new_folder if to_folder else new_file)(out, force=options.force) as target:
        torch.manual_seed(options.seed)
        model = construct()
        report = save(
            model,
            target,
            max_shard_size=options.max_shard_size,
            memory_budget=options.memory_budget,
            progress=options.progress,
        )
    data = {
        "output": str(out),
        "files": files_below(out),
        "model": type(model).__name__,
        "seed": options.seed,
        "tensors": len(report.tensors),
        "elements": sum(parameter.numel() for parameter in model.parameters()),
        "nbytes": sum(tensor.nbytes for tensor in report.tensors),
        "seconds": time.perf_counter() - started,
        "peak_memory": peak.result(),
    }
    text = (
        f"wrote {data['model']} with {data['elements']:,} parameters: "
        f"{format_count(len(report.tensors), 'tensor')}, {format_bytes(data['nbytes'])}, to "
        f"{data['output']} ({format_count(len(data['files']), 'file')}) in {data['seconds']:.1f} s"
        + ("" if data["peak_memory"] is None else f", peak {format_bytes(data['peak_memory'])}")
    )
    return Outcome(data, text)
