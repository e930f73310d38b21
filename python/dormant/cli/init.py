"""`dormant init` writes a checkpoint with random weights for a model that is never in memory."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dormant.cli.arguments import add_output_options, default_dtype, seed
from dormant.cli.destination import files_below, is_folder, new_file, new_folder, output
from dormant.cli.outcome import Outcome, UsageError
from dormant.cli.pretrained import model_class, read_config
from dormant.integrations.transformers import from_config
from dormant.recording.context import lazy_init
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
    config = None
    if options.model and Path(options.model).exists():
        config = read_config(options.model)
    elif ":" not in options.model:
        raise UsageError(
            f"no such file or folder: {options.model!r}. Pass a config.json of transformers, a "
            "folder that contains one, or a module:callable such as train:build_model."
        )
    with (new_folder if to_folder else new_file)(out, force=options.force) as target:
        torch.manual_seed(options.seed)
        if config is not None:
            model = _from_config(config, options.dtype)
        else:
            model = _call(options.model, options.dtype)
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


def _from_config(config: Any, dtype: torch.dtype | None) -> torch.nn.Module:
    model: torch.nn.Module = from_config(
        model_class(config), config, dtype=dtype, materialize=False
    )
    return model


def _call(reference: str, dtype: torch.dtype | None) -> torch.nn.Module:
    name, _, attribute = reference.partition(":")
    # As with `python -m`; a console script has its own folder at this position.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        try:
            build: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(f"no module named {name!r} (MODEL is {reference!r}).") from None
        for part in attribute.split("."):
            build = getattr(build, part, None)
        if not callable(build):
            raise UsageError(f"module {name!r} has no function {attribute!r}.")
        with lazy_init(dtype=dtype):
            model = build()
    except SystemExit as error:
        raise RuntimeError(
            f"{reference} called sys.exit({error.code}). If the module is a script, put the code "
            'of the script under `if __name__ == "__main__":`.'
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(
            f"{reference} returned {type(model).__name__}, expected a torch.nn.Module."
        )
    return model
