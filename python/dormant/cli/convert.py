"""`dormant convert`: another checkpoint made of one, tensor by tensor in a stream."""

from __future__ import annotations

import argparse
import time
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
    files_below,
    is_folder,
    new_file,
    new_folder,
    output,
)
from dormant.cli.outcome import Outcome, UsageError
from dormant.cli.pretrained import GGUF_ENDING, quantized_model, read_config
from dormant.loading.encoded import forget_encoding
from dormant.publication.publication import Publication, Replacement
from dormant.quantization.statistics import compute_offsets
from dormant.reporting.memory import PeakMemory
from dormant.reporting.report import Report
from dormant.saving.api import SAFETENSORS_ENDING, TORCH_ENDINGS, save
from dormant.saving.stream import write_files
from dormant.saving.torch_archive import plan_torch_archive
from dormant.tensor_parallel.rules import LLAMA, LLAMA3
from dormant.tensor_parallel.sets import split
from dormant.tensors.names import renamed
from dormant.tensors.names import renaming as as_function
from dormant.text.table import format_bytes

NAME = "convert"
SUMMARY = "make another checkpoint: format, dtype, quantized, merged or divided anew"
DESCRIPTION = """\
    Reads a checkpoint and writes another one. Tensors pass through in small pieces: neither the
    checkpoint nor its largest tensor has to fit into memory. What OUT is called decides the format:

      OUT.safetensors        one safetensors file
      OUT.pt, .pth, .bin     one file as torch.save writes it
      OUT                    a folder: model.safetensors, or files of --max-shard-size and an index;
                             with --parts N consolidated.00.pth, ... as LLaMA's parallel sets,
                             with --format dcp one of torch.distributed.checkpoint

    The parts of a tensor-parallel set, and of ranks (.metadata), are merged when they are read. If
    IN is a folder and OUT one, configurations and tokenizers are copied, and --dtype is noted in
    config.json. Weights that are kept encoded, as fp8 or mxfp4 with their scales, are decoded,
    unless --no-decode is given.
"""
EXAMPLES = """\
    examples:
      dormant convert pytorch_model.bin model.safetensors
      dormant convert model bf16 --dtype bfloat16 --max-shard-size 2GB
      dormant convert llama-2-13b llama-2-13b-whole
      dormant convert base finetuned-diffs sum        # LLaMA2-Accessory's differences are added
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
        help="a file, an index or a folder, or the URL of one; several make one",
    )
    parser.add_argument("out", metavar="OUT", help="a file or a folder, see above")
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        type=dtype,
        help=f"cast floating point tensors: {', '.join(DTYPE_NAMES)}",
    )
    parser.add_argument(
        "--quantize",
        metavar="SCHEME",
        choices=_SCHEMES,
        help="nf4, fp4 or int8, as bitsandbytes; a config.json, or a GGUF file itself, says which "
        "model it is",
    )
    parser.add_argument(
        "--config",
        metavar="PATH",
        help="with --quantize: a config.json of transformers, or a folder that has one "
        "(default: IN)",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "torch", "dcp"),
        help="dcp: a folder of torch.distributed.checkpoint; the others as OUT says (default)",
    )
    parser.add_argument(
        "--parts", metavar="N", type=positive, help="divide for N ranks of tensor parallelism"
    )
    parser.add_argument(
        "--rules",
        choices=sorted(_RULES),
        help="how tensor-parallel parts are divided (default: LLaMA, the version by the shapes)",
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=renaming,
        action="append",
        default=[],
        help="rename a tensor, or, if OLD is empty or ends with a dot, a prefix; may be repeated",
    )
    parser.add_argument(
        "--key",
        help="which mapping in a file of torch.save, or in what ranks saved, holds the tensors "
        "(default: the only; of ranks all)",
    )
    parser.add_argument(
        "--foreign",
        choices=("inert", "error"),
        default="inert",
        help="objects of unknown classes in files of torch.save: never made (default), or refused",
    )
    parser.add_argument(
        "--no-decode",
        action="store_true",
        help="keep tensors that are encoded (fp8, mxfp4, 4-bit codes, ...) as they are",
    )
    add_output_options(parser)


def run(options: argparse.Namespace) -> Outcome:
    """What was written."""
    started = time.perf_counter()
    peak = PeakMemory()
    out = output(options.out)
    to_folder = is_folder(out, (SAFETENSORS_ENDING, *TORCH_ENDINGS))
    _check_usage(options, to_folder)
    check_apart(out, (path if is_url(path) else Path(path) for path in options.paths))
    with (new_folder if to_folder else new_file)(out, force=options.force) as target:
        if options.quantize:
            about = _quantize(options, target)
        else:
            about = _convert(options, target, to_folder)
    data = {
        "output": str(out),
        "files": files_below(out),
        **about,
        "seconds": time.perf_counter() - started,
        "peak_memory": peak.result(),
    }
    return Outcome(data, _text(data))


def _check_usage(options: argparse.Namespace, to_folder: bool) -> None:
    if (options.quantize or options.parts) and not to_folder:
        raise UsageError(f"--quantize and --parts write a folder; {options.out} names a file.")
    if options.quantize and options.parts:
        raise UsageError(
            "--quantize and --parts cannot be used together: quantized layers are not divided. "
            "Divide with --parts, and quantize each rank's model when it is loaded."
        )
    if options.format == "dcp" and (options.parts or not to_folder):
        raise UsageError(
            "--format dcp writes a folder, which torch.distributed.checkpoint divides anew for any "
            "number of ranks. Leave --parts out, and name a folder."
        )
    if options.quantize and options.no_decode:
        raise UsageError("--quantize needs plain weights: leave --no-decode out.")
    if options.config is not None and not options.quantize:
        raise UsageError(
            "--config says what the layers are, for --quantize; nothing else needs it."
        )
    if options.quantize and _config_of(options) is None:
        raise UsageError(
            "--quantize needs a config.json of transformers, or a GGUF file, which say what the "
            f"layers are; {', '.join(options.paths)} has none. Pass --config."
        )


def _config_of(options: argparse.Namespace) -> Path | None:
    """What says which model the checkpoint is of: a folder or a file."""
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
        those of a model, where the format has names of its own.
    """
    rules = None if options.rules is None else _RULES[options.rules]
    # Weights are computed in two bytes or more; a cast to less comes after.
    wanted = options.dtype is not None and options.dtype.itemsize > 1
    decode: Decode = not options.no_decode and (options.dtype if wanted else True)
    checkpoint = open_checkpoint(
        options.paths, key=options.key, rules=rules, decode=decode, foreign=options.foreign
    )
    check_apart(Path(options.out), checkpoint.files)
    rename = prefix_or_name(options.rename)
    unused = [old for old in rename if not _is_used(old, checkpoint)]
    if unused:
        raise UsageError(f"--rename {unused[0]}={rename[unused[0]]}: no tensor has such a name.")
    state: dict[str, torch.Tensor] = {}
    made: dict[Entry, torch.Tensor] = {}
    for name, entry in checkpoint.entries.items():
        # Each access puts a tensor together from its parts anew.
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
            "the checkpoint is quantized: --dtype would cast its scales. Leave it out."
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
        # Parts of an earlier set of more ranks would be taken for parts of this one.
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
    model, left_out = quantized_model(config, state, options.dtype, options.quantize, naming)
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


def _text(data: Mapping[str, Any]) -> str:
    peak = data["peak_memory"]
    lines = [
        f"{data['tensors']} tensors, {format_bytes(data['nbytes'])} to {data['output']} "
        f"({len(data['files'])} files) in {data['seconds']:.1f} s"
        + ("" if peak is None else f", peak memory {format_bytes(peak)}")
    ]
    if data["copied"]:
        lines.append(f"copied {', '.join(data['copied'])}")
    if data.get("left_out"):
        lines.append(f"not in the model, left out: {', '.join(data['left_out'])}")
    return "\n".join(lines)
