"""`dormant convert` writes another checkpoint from one, streaming tensor by tensor."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.decoding import Decode
from dormant.checkpoint.entry import Entry
from dormant.checkpoint.pretrained import Naming
from dormant.checkpoint.url import is_url
from dormant.cli.arguments import (
    DTYPE_NAMES,
    add_output_options,
    add_reading_options,
    dtype,
    positive,
    prefix_or_name,
    renaming,
)
from dormant.cli.casting import cast
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
from dormant.cli.outcome import Outcome, UsageError
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
from dormant.tensor_parallel.rules import LLAMA, LLAMA3
from dormant.tensor_parallel.sets import split
from dormant.tensors.names import renamed
from dormant.tensors.names import renaming as as_function

NAME = "convert"
SUMMARY = "convert a checkpoint: change its format or dtype, quantize, merge or divide it"
DESCRIPTION = """\
    Reads a checkpoint and writes another one. Tensors are processed in small pieces, so neither the
    checkpoint nor its largest tensor has to fit in memory. The name of OUT determines the format:

      OUT.safetensors        one safetensors file
      OUT.pt, .pth, .bin     one file as torch.save writes it
      OUT                    a folder: model.safetensors, or files of --max-shard-size and an index;
                             with --parts N, consolidated.00.pth, ... like LLaMA's sets;
                             with --format dcp, a folder of torch.distributed.checkpoint

    The parts of a tensor-parallel set, and the parts of ranks (.metadata), are merged when they are
    read. If IN and OUT are folders, configurations and tokenizers are copied, and --dtype is
    written to config.json. Weights that are stored encoded, such as fp8 or mxfp4 with their scales,
    are decoded unless --no-decode is given.
"""
EXAMPLES = """\
    examples:
      dormant convert pytorch_model.bin model.safetensors
      dormant convert model bf16 --dtype bfloat16 --max-shard-size 2GB
      dormant convert llama-2-13b llama-2-13b-whole
      dormant convert base finetuned-diffs sum        # adds LLaMA2-Accessory's differences
      dormant convert llama-2-13b four --parts 4
      dormant convert old.pt new.safetensors --rename module.= --rename head.w=head.weight
      dormant convert llama llama-nf4 --quantize nf4 --dtype bfloat16
      dormant convert llama-Q4_K_M.gguf llama-nf4 --quantize nf4
      dormant convert deepseek-fp8 deepseek-bf16 --dtype bfloat16 --max-shard-size 5GB
      dormant convert training.pt out --key model --rename module.= --quantize nf4 --config llama
      dormant convert step-1000 model.safetensors --key model     # ranks' .distcp files
      dormant convert llama llama-dcp --format dcp
"""
_RULES = {"llama": LLAMA, "llama3": LLAMA3}
_SCHEMES = ("nf4", "fp4", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument(
        "paths",
        metavar="IN",
        nargs="+",
        help="a file, an index or a folder, or the URL of one; several become one checkpoint",
    )
    parser.add_argument("out", metavar="OUT", help="a file or a folder, see above")
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        type=dtype,
        help=f"cast floating-point tensors to one of {', '.join(DTYPE_NAMES)}",
    )
    parser.add_argument(
        "--quantize",
        metavar="SCHEME",
        choices=_SCHEMES,
        help="nf4, fp4 or int8, as in bitsandbytes; needs a config.json (or a GGUF file), which "
        "gives the model class",
    )
    parser.add_argument(
        "--config",
        metavar="PATH",
        help="with --quantize: a config.json of transformers, or a folder that contains one "
        "(default: IN)",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "torch", "dcp"),
        help="dcp: a folder of torch.distributed.checkpoint; the others follow from the name OUT",
    )
    parser.add_argument(
        "--parts", metavar="N", type=positive, help="divide for N ranks of tensor parallelism"
    )
    parser.add_argument(
        "--rules",
        choices=sorted(_RULES),
        help="how tensor-parallel parts are divided (default: LLaMA; shapes tell the version)",
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=renaming,
        action="append",
        default=[],
        help="rename a tensor, or a prefix if OLD is empty or ends with a dot; may be repeated",
    )
    add_reading_options(parser, "keep")
    add_output_options(parser)


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
    if options.quantize and options.parts:
        raise UsageError(
            "--quantize and --parts cannot be used together, because quantized layers cannot be "
            "divided. Divide with --parts, and quantize each rank's model when you load it."
        )
    if options.format == "dcp" and (options.parts or not to_folder):
        raise UsageError(
            "--format dcp writes a folder, which torch.distributed.checkpoint can load on any "
            "number of ranks. Leave out --parts, and name a folder."
        )
    if options.quantize and options.no_decode:
        raise UsageError("--quantize needs plain weights. Leave out --no-decode.")
    if options.config is not None and not options.quantize:
        raise UsageError(
            "--config gives the model class for --quantize and has no effect without it."
        )
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
    rules = None if options.rules is None else _RULES[options.rules]
    # Weights are decoded to two bytes or more; a cast to fewer bytes comes afterwards.
    wanted = options.dtype is not None and options.dtype.itemsize > 1
    decode: Decode = not options.no_decode and (options.dtype if wanted else True)
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
    if options.dtype is not None and is_quantized and not decoded:
        raise UsageError(
            "the checkpoint is quantized, and --dtype would cast its scales. Leave out --dtype."
        )
    if options.dtype is not None:
        state = cast(state, options.dtype)
    companions = find_companions(folders) if to_folder else {}
    if options.parts:
        rules = None if options.rules is None else _RULES[options.rules]
        parts = split(state, options.parts, rules=rules)
        names = [f"consolidated.{rank:02}.pth" for rank in range(options.parts)]
        _save_parts(dict(zip(names, parts, strict=True)), target, options)
    else:
        _save(state, target, options)
    copied = (
        copy_companions(companions, target, dtype=options.dtype, decoded=decoded)
        if companions
        else []
    )
    return {"tensors": len(state), "nbytes": _nbytes(state.values()), "copied": copied}


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
    model, left_out = lazy_model(config, state, options.dtype, naming)
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
