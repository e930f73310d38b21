"""`dormant init` writes a checkpoint with random weights for a model that is never in memory."""

from __future__ import annotations

import argparse
import time

import torch

from dormant.cli.arguments import add_output_options, default_dtype, seed
from dormant.cli.destination import files_below, is_folder, new_file, new_folder, output
from dormant.cli.models import constructor
from dormant.cli.outcome import Outcome
from dormant.reporting.memory import PeakMemory
from dormant.saving.api import save
from dormant.text.table import format_bytes, format_count

NAME = "init"
SUMMARY = "write a checkpoint with the random weights of eager construction"
DESCRIPTION = """\
    Constructs a model lazily and streams its initial weights to safetensors. They equal those of
    eager construction with the same seed, bit for bit. The model does not have to fit in memory.

    MODEL is a config.json of transformers, a folder that contains one, or module:callable, which is
    imported (with the current folder on the path) and called without arguments to get the model.
"""
EXAMPLES = """\
    examples:
      dormant init llama/config.json random-llama --seed 0 --dtype bfloat16
      dormant init torchvision.models:resnet50 resnet50.safetensors
      dormant init train:build_model start --seed 7
"""
_SAFETENSORS = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument("model", metavar="MODEL", help="see above")
    parser.add_argument("out", metavar="OUT", help="a folder, or a file NAME.safetensors")
    parser.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="seed for torch.manual_seed (default: 0)"
    )
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        type=default_dtype,
        help="dtype of the model: float64, float32, float16 or bfloat16 (default: that of the "
        "configuration, otherwise float32)",
    )
    add_output_options(parser)


def run(options: argparse.Namespace) -> Outcome:
    """What was written."""
    started = time.perf_counter()
    peak = PeakMemory()
    out = output(options.out)
    to_folder = is_folder(out, (_SAFETENSORS,))
    construct = constructor(options.model, options.dtype)
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
