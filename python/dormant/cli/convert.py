"""`dormant convert`: another checkpoint made of one, tensor by tensor in a stream."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dormant.checkpoint import Checkpoint, open_checkpoint
from dormant.cli.arguments import (
    DTYPE_NAMES,
    add_output_options,
    dtype,
    positive,
    prefix_or_name,
    renaming,
)
from dormant.cli.companions import (
    configuration,
    copy_companions,
    find_companions,
    folders_of,
)
from dormant.cli.destination import check_apart, files_below, is_folder, new_file, new_folder
from dormant.cli.outcome import Outcome, UsageError
from dormant.cli.pretrained import (
    model_class,
    read_config,
    save_configuration,
    saved_state,
)
from dormant.cli.torch_archive import geometry, write_torch_archive
from dormant.memory import PeakMemory
from dormant.names import renamed
from dormant.names import renaming as as_function
from dormant.parallel_rules import LLAMA, LLAMA3
from dormant.progress import ProgressBar, wants_bar
from dormant.publication import Publication
from dormant.save import save
from dormant.table import format_bytes
from dormant.tensor_parallel import split

NAME = "convert"
SUMMARY = "make another checkpoint: format, dtype, quantised, merged or divided anew"
DESCRIPTION = """\
    Reads a checkpoint and writes another one. Tensors pass through in small pieces: neither the
    checkpoint nor its largest tensor has to fit into memory. What OUT is called decides the format:

      OUT.safetensors        one safetensors file
      OUT.pt, .pth, .bin     one file as torch.save writes it
      OUT                    a folder: model.safetensors, or files of --max-shard-size and an index;
                             with --parts N consolidated.00.pth, ... as LLaMA's tensor-parallel sets

    The parts of a tensor-parallel set are merged when they are read. If IN is a folder and OUT one,
    configurations and tokenizers are copied, and --dtype is noted in config.json.
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
"""
_RULES = {"llama": LLAMA, "llama3": LLAMA3}
_TORCH = (".pt", ".pth", ".bin")
_SAFETENSORS = ".safetensors"
_SCHEMES = ("nf4", "fp4", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument(
        "paths", metavar="IN", nargs="+", help="a file, an index or a folder; several make one"
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
        help="nf4, fp4 or int8, as bitsandbytes; IN is a folder with a config.json of transformers",
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
        "--key", help="which mapping in a file of torch.save holds the tensors (default: the only)"
    )
    add_output_options(parser)


def run(options: argparse.Namespace) -> Outcome:
    """What was written."""
    started = time.perf_counter()
    peak = PeakMemory()
    out = Path(options.out)
    to_folder = is_folder(out, (_SAFETENSORS, *_TORCH))
    _check_usage(options, to_folder)
    check_apart(out, map(Path, options.paths))
    with (new_folder if to_folder else new_file)(out, force=options.force) as target:
        if options.quantize:
            about = _quantise(options, target)
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
    if options.quantize:
        beside = [
            name
            for name, value in (
                ("--parts", options.parts),
                ("--rename", options.rename),
                ("--key", options.key),
                ("--rules", options.rules),
            )
            if value
        ]
        if beside:
            raise UsageError(
                f"--quantize loads a model of transformers; it cannot be used with {beside[0]}. "
                "Convert in two steps."
            )
        if len(options.paths) != 1 or not (Path(options.paths[0]) / "config.json").is_file():
            raise UsageError(
                "--quantize needs one folder with a config.json of transformers, which says what "
                f"the layers are; got {', '.join(options.paths)}."
            )
    if (options.quantize or options.parts) and not to_folder:
        raise UsageError(f"--quantize and --parts write a folder; {options.out} names a file.")


def _convert(options: argparse.Namespace, target: Path, to_folder: bool) -> dict[str, Any]:
    rules = None if options.rules is None else _RULES[options.rules]
    checkpoint = open_checkpoint(options.paths, key=options.key, rules=rules)
    check_apart(Path(options.out), checkpoint.files)
    folders = folders_of(options.paths)
    if options.dtype is not None and "quantization_config" in configuration(folders):
        raise UsageError(
            "the checkpoint is quantised: --dtype would cast its scales. Leave it out."
        )
    rename = prefix_or_name(options.rename)
    unused = [old for old in rename if not _is_used(old, checkpoint)]
    if unused:
        raise UsageError(f"--rename {unused[0]}={rename[unused[0]]}: no tensor has such a name.")
    state = _state(checkpoint, rename, options.dtype)
    companions = find_companions(folders) if to_folder else {}
    if options.parts:
        parts = split(state, options.parts, rules=rules)
        _save_torch(
            {f"consolidated.{rank:02}.pth": part for rank, part in enumerate(parts)}, target
        )
    elif target.suffix in _TORCH and not to_folder:
        _save_torch({target.name: state}, target.parent)
    else:
        save(state, target, max_shard_size=options.max_shard_size)
    copied = copy_companions(companions, target, dtype=options.dtype) if companions else []
    return {"tensors": len(state), "nbytes": _nbytes(state.values()), "copied": copied}


def _is_used(old: str, names: Iterable[str]) -> bool:
    is_prefix = old == "" or old.endswith(".")
    return any(name == old or (is_prefix and name.startswith(old)) for name in names)


def _state(
    checkpoint: Checkpoint, rename: Mapping[str, str], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The tensors under their new names, lazy, those of one storage still of one."""
    state = renamed(dict(checkpoint), as_function(rename))
    if dtype is None:
        return state
    cast: dict[object, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            identity = geometry(tensor)
            if identity not in cast:
                cast[identity] = tensor.to(dtype)
            state[name] = cast[identity]
    return state


def _save_torch(files: Mapping[str, Mapping[str, torch.Tensor]], folder: Path) -> None:
    total = sum(_nbytes(state.values()) for state in files.values())
    done = 0
    with Publication(folder) as publication, ProgressBar("convert") as bar:

        def written(count: int) -> None:
            nonlocal done
            done += count
            if wants_bar(None):
                bar(done, total)

        for name, state in files.items():
            with publication.create(name) as descriptor:
                write_torch_archive(state, descriptor, written)
        # Parts of an earlier set of more ranks would be taken for parts of this one.
        old = folder.glob("consolidated.*.pth") if "consolidated.00.pth" in files else ()
        publication.publish(before=[path for path in old if path.name not in files])


def _quantise(options: argparse.Namespace, target: Path) -> dict[str, Any]:
    from dormant.integrations.transformers import from_pretrained

    source = Path(options.paths[0])
    config = read_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{source} is already quantised, according to its config.json.")
    model, info = from_pretrained(
        model_class(config),
        source,
        dtype=options.dtype,
        quantization=options.quantize,
        missing="error",
        materialize=False,
        output_loading_info=True,
    )
    state = saved_state(model)
    save(state, target, max_shard_size=options.max_shard_size)
    companions = find_companions([source])
    for written in ("config.json", "generation_config.json"):
        companions.pop(written, None)
    copied = copy_companions(companions, target) if companions else []
    save_configuration(model, target)
    return {
        "tensors": len(state),
        "nbytes": _nbytes(state.values()),
        "copied": copied,
        "left_out": sorted(info["unexpected_keys"]),
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
