"""`dormant merge` adds an adapter of peft to the weights that it was trained for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch

from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.url import is_url
from dormant.cli.casting import dtype_of
from dormant.cli.companions import copy_companions, find_companions, folders_of
from dormant.cli.destination import check_apart, new_folder, output
from dormant.cli.pretrained import lazy_model, read_config
from dormant.cli.written import Writing
from dormant.integrations.library import imported
from dormant.integrations.peft import load_adapter
from dormant.loading.encoded import forget_encoding
from dormant.recording.context import lazy_init
from dormant.saving.api import save
from dormant_command.outcome import Outcome, UsageError


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
    chosen: torch.dtype | Literal["auto"] = dtype_of(options.dtype) or "auto"
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
