"""`dormant merge` adds an adapter of peft to the weights that it was trained for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch

from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.url import is_url
from dormant.cli.arguments import add_output_options, dtype
from dormant.cli.companions import copy_companions, find_companions, folders_of
from dormant.cli.destination import check_apart, new_folder, output
from dormant.cli.outcome import Outcome, UsageError
from dormant.cli.pretrained import lazy_model, read_config
from dormant.cli.written import Writing
from dormant.integrations.library import imported
from dormant.integrations.peft import load_adapter
from dormant.loading.encoded import forget_encoding
from dormant.recording.context import lazy_init
from dormant.saving.api import save

NAME = "merge"
SUMMARY = "merge a LoRA or another adapter of peft into the weights of its base model"
DESCRIPTION = """\
    Writes a folder OUT with the model of transformers in BASE, into whose weights the adapter is
    merged. peft itself merges (LoRA, DoRA, rsLoRA, modules_to_save, ...) on lazy weights, so the
    bits are those of its merge_and_unload(). Each weight is computed while it is written: neither
    the model nor the result has to fit in memory. Encoded weights in BASE (nf4, fp8, GGUF, ...) are
    decoded first.
"""
EXAMPLES = """\
    examples:
      dormant merge llama adapter merged
      dormant merge llama checkpoint-500 merged --dtype bfloat16
      dormant merge model.safetensors adapter merged --config config.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument(
        "base",
        metavar="BASE",
        help="the base model: a folder with a config.json, a file, or the URL of one",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder that peft has saved")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--config",
        metavar="PATH",
        help="a config.json of transformers, or a folder that contains one (default: BASE)",
    )
    parser.add_argument(
        "--dtype", metavar="DTYPE", type=dtype, help="dtype of the model (default: that of BASE)"
    )
    add_output_options(parser)


def run(options: argparse.Namespace) -> Outcome:
    """What was written."""
    writing = Writing()
    out = output(options.out)
    check_apart(out, [options.base if is_url(options.base) else Path(options.base)])
    check_apart(out, [Path(options.adapter)])
    with new_folder(out, force=options.force) as target:
        about = _merge(options, target)
    return writing.outcome(out, about, action=f"merged a {about['adapter']} adapter and wrote")


def _merge(options: argparse.Namespace, target: Path) -> dict[str, Any]:
    place = Path(options.base if options.config is None else options.config)
    if is_url(options.base) and options.config is None:
        raise UsageError("BASE is a URL. Pass --config with the configuration of the model.")
    if options.config is None and not place.is_dir():
        raise UsageError(f"{place} is not a folder with a config.json. Pass --config.")
    config = read_config(place)
    checkpoint = open_checkpoint(options.base)
    if checkpoint.is_decoded:
        forget_encoding(config)
    chosen: torch.dtype | Literal["auto"] = options.dtype or "auto"
    model, left_out = lazy_model(config, dict(checkpoint), chosen, checkpoint.naming)
    imported("peft")
    adapted = load_adapter(model, options.adapter, materialize=False)
    kinds = [str(getattr(each.peft_type, "value", "")) for each in adapted.peft_config.values()]
    with lazy_init(), torch.no_grad():
        merged = adapted.merge_and_unload(progressbar=False)
    report = save(
        merged,
        target,
        max_shard_size=options.max_shard_size,
        memory_budget=options.memory_budget,
        progress=options.progress,
    )
    companions = find_companions([place, *folders_of([options.base])] if place.is_dir() else [])
    companions.pop("config.json", None)
    return {
        "adapter": kinds[0],
        "tensors": len(report.tensors),
        "nbytes": sum(tensor.nbytes for tensor in report.tensors),
        "copied": copy_companions(companions, target) if companions else [],
        "left_out": left_out,
    }
