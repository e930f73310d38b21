"""`dormant convert` writes another checkpoint from one, streaming tensor by tensor."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.decoding import Decode
from dormant.checkpoint.entry import Entry
from dormant.checkpoint.pretrained import Naming
from dormant.checkpoint.url import is_url
from dormant.cli.casting import cast, dtype_of
from dormant.cli.companions import (
    configuration,
    copy_companions,
    find_companions,
    folders_of,
)
from dormant.cli.destination import (
    check_apart,
    is_folder,
    new_file,
    new_folder,
    output,
)
from dormant.cli.library_rules import library_rules
from dormant.cli.pretrained import GGUF_ENDING, lazy_model, read_config
from dormant.cli.written import Writing
from dormant.loading.encoded import forget_encoding
from dormant.publication.publication import Publication, Replacement
from dormant.quantization.api import quantize
from dormant.quantization.statistics import compute_offsets
from dormant.reporting.report import Report
from dormant.saving.api import SAFETENSORS_ENDING, TORCH_ENDINGS, save
from dormant.saving.stream import write_files
from dormant.saving.torch_archive import plan_torch_archive
from dormant.tensor_parallel.rules import LLAMA, LLAMA3, Rules, match
from dormant.tensor_parallel.sets import split
from dormant.tensors.names import renamed
from dormant.tensors.names import renaming as as_function
from dormant.text.printable import printable
from dormant_command.arguments import prefix_or_name
from dormant_command.outcome import Outcome, UsageError

_LLAMAS = {"llama": LLAMA, "llama3": LLAMA3}


def run(options: argparse.Namespace) -> Outcome:
    """What was written."""
    writing = Writing()
    out = output(options.out)
    to_folder = is_folder(out, (SAFETENSORS_ENDING, *TORCH_ENDINGS))
    _check_usage(options, to_folder)
    check_apart(out, (path if is_url(path) else Path(path) for path in options.paths))
    with (new_folder if to_folder else new_file)(out, force=options.force) as target:
        if options.quantize:
            about = _quantize(options, target)
        else:
            about = _convert(options, target, to_folder)
    return writing.outcome(out, about)


def _check_usage(options: argparse.Namespace, to_folder: bool) -> None:
    if (options.quantize or options.parts) and not to_folder:
        raise UsageError(f"--quantize and --parts write a folder, but {options.out} is a file.")
    if options.format == "dcp" and not to_folder:
        raise UsageError(f"--format dcp writes a folder, but {options.out} is a file.")
    if options.quantize and _config_of(options) is None:
        raise UsageError(
            "--quantize needs a config.json of transformers (or a GGUF file), which gives the "
            f"model class, but {', '.join(options.paths)} has none. Pass --config."
        )


def _config_of(options: argparse.Namespace) -> Path | None:
    """The folder or file that says which model the checkpoint belongs to."""
    if options.config is not None:
        return Path(options.config)
    folders = [folder for folder in folders_of(options.paths) if isinstance(folder, Path)]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if found is None and options.paths[0].endswith(GGUF_ENDING) and not is_url(options.paths[0]):
        return Path(options.paths[0])
    return found


def _open(
    options: argparse.Namespace,
) -> tuple[dict[str, torch.Tensor], bool, Naming | None]:
    """The checkpoint's tensors under their new names, lazy, tied ones of one storage.

    Returns:
        The tensors, whether some of them are kept encoded in the files, and how the names become
        those of a model, if the format has its own names.
    """
    if options.rules == "transformers":
        rules: Rules | None = library_rules(_model_of(options), (), 1)
    else:
        rules = _LLAMAS.get(options.rules)
    # Weights are decoded to two bytes or more; a cast to fewer bytes comes afterwards.
    dtype = dtype_of(options.dtype)
    decode: Decode = not options.no_decode
    if decode and dtype is not None and dtype.itemsize > 1:
        decode = dtype
    checkpoint = open_checkpoint(
        options.paths, key=options.key, rules=rules, decode=decode, foreign=options.foreign
    )
    check_apart(Path(options.out), checkpoint.files)
    rename = prefix_or_name(options.rename)
    unused = [old for old in rename if not _is_used(old, checkpoint)]
    if unused:
        raise UsageError(f"--rename {unused[0]}={rename[unused[0]]}: no tensor has this name.")
    state: dict[str, torch.Tensor] = {}
    made: dict[Entry, torch.Tensor] = {}
    for name, entry in checkpoint.entries.items():
        # Each access assembles a tensor from its parts again.
        state[name] = made[entry] if entry in made else checkpoint[name]
        if entry.parts:
            made[entry] = state[name]
    return renamed(state, as_function(rename)), checkpoint.is_decoded, checkpoint.naming


def _is_used(old: str, names: Iterable[str]) -> bool:
    is_prefix = old == "" or old.endswith(".")
    return any(name == old or (is_prefix and name.startswith(old)) for name in names)


def _convert(options: argparse.Namespace, target: Path, to_folder: bool) -> dict[str, Any]:
    folders = folders_of(options.paths)
    state, decoded, _ = _open(options)
    is_quantized = "quantization_config" in configuration(folders)
    dtype = dtype_of(options.dtype)
    if dtype is not None and is_quantized and not decoded:
        raise UsageError(
            "the checkpoint is quantized, and --dtype would cast its scales. Leave out --dtype."
        )
    if dtype is not None:
        state = cast(state, dtype)
    companions = find_companions(folders) if to_folder else {}
    if options.parts:
        parts = split(state, options.parts, rules=_rules_for_parts(options, state))
        names = [f"consolidated.{rank:02}.pth" for rank in range(options.parts)]
        _save_parts(dict(zip(names, parts, strict=True)), target, options)
    else:
        _save(state, target, options)
    copied = copy_companions(companions, target, dtype=dtype, decoded=decoded) if companions else []
    return {"tensors": len(state), "nbytes": _nbytes(state.values()), "copied": copied}


def _rules_for_parts(options: argparse.Namespace, names: Collection[str]) -> Rules:
    """The rules that `--rules` names, or otherwise those to which the names belong."""
    if options.rules in _LLAMAS:
        return _LLAMAS[options.rules]
    others = [name for name in names if match(LLAMA, name) is None]
    if options.rules is None and not others:
        return LLAMA
    return library_rules(_model_of(options, others), names, options.parts)


def _model_of(options: argparse.Namespace, others: Sequence[str] = ()) -> Any:
    """The configuration of the model whose plan says how to divide its weights."""
    place = _config_of(options)
    if place is None:
        found = f" {printable(others[0])} is not a name of LLaMA's, and" if others else ""
        raise UsageError(
            f"to divide the weights of a model of transformers, its config.json is needed:{found} "
            f"{', '.join(options.paths)} has none. Pass --config."
        )
    return read_config(place)


def _save(
    model: torch.nn.Module | Mapping[str, torch.Tensor], target: Path, options: argparse.Namespace
) -> Report:
    return save(
        model,
        target,
        format=options.format,
        max_shard_size=options.max_shard_size,
        memory_budget=options.memory_budget,
        progress=options.progress,
    )


def _save_parts(
    parts: Mapping[str, Mapping[str, torch.Tensor]], folder: Path, options: argparse.Namespace
) -> None:
    def order(replacement: Replacement) -> None:
        # Parts of an earlier set with more ranks would be mistaken for parts of this one.
        for old in sorted(folder.glob("consolidated.*.pth")):
            if old.name not in parts:
                replacement.remove(old.name)
        replacement.place_all()

    with Publication(folder) as publication:
        write_files(
            publication,
            {name: plan_torch_archive(dict(part)) for name, part in parts.items()},
            title="convert",
            memory_budget=options.memory_budget,
            progress=options.progress,
        )
        publication.publish(order)


def _quantize(options: argparse.Namespace, target: Path) -> dict[str, Any]:
    place = _config_of(options)
    assert place is not None
    config = read_config(place)
    state, decoded, naming = _open(options)
    if decoded:
        forget_encoding(config)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{place} is already quantized, according to its config.json.")
    model, left_out = lazy_model(config, state, dtype_of(options.dtype), naming)
    quantize(model, options.quantize)
    compute_offsets(model, memory_budget=options.memory_budget, progress=options.progress)
    report = _save(model, target, options)
    folders = folders_of(options.paths)
    companions = find_companions([place, *folders] if place.is_dir() else folders)
    companions.pop("config.json", None)
    copied = copy_companions(companions, target) if companions else []
    return {
        "tensors": len(report.tensors),
        "nbytes": sum(tensor.nbytes for tensor in report.tensors),
        "copied": copied,
        "left_out": left_out,
    }


def _nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
