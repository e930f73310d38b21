"""The arguments of `dormant convert`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import (
    DTYPE_NAMES,
    add_output_options,
    add_reading_options,
    add_rename_option,
    dtype,
    positive,
)
from dormant_command.outcome import UsageError

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
RULES = ("llama", "llama3", "transformers")


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
        choices=("nf4", "fp4", "int8"),
        help="nf4, fp4 or int8, as in bitsandbytes; needs a config.json (or a GGUF file), which "
        "gives the model class",
    )
    parser.add_argument(
        "--config",
        metavar="PATH",
        help="with --quantize, --parts or --rules: a config.json of transformers, or a folder that "
        "contains one (default: IN)",
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
        choices=RULES,
        help="how tensor-parallel parts are divided: like LLaMA's, or by transformers' plan for "
        "the model of config.json (default: what the names tell; shapes tell the version of LLaMA)",
    )
    add_rename_option(
        parser,
        "rename a tensor, or a prefix if OLD is empty or ends with a dot; may be repeated",
    )
    add_reading_options(parser, "keep")
    add_output_options(parser)


def check(options: argparse.Namespace) -> None:
    """Raises UsageError if options exclude each other, whatever the files contain."""
    if options.quantize and options.parts:
        raise UsageError(
            "--quantize and --parts cannot be used together, because quantized layers cannot be "
            "divided. Divide with --parts, and quantize each rank's model when you load it."
        )
    if options.format == "dcp" and options.parts:
        raise UsageError(
            "--format dcp writes a folder that torch.distributed.checkpoint can load on any number "
            "of ranks. Leave out --parts."
        )
    if options.quantize and options.no_decode:
        raise UsageError("--quantize needs plain weights. Leave out --no-decode.")
    if options.config is not None and not (options.quantize or options.parts or options.rules):
        raise UsageError(
            "--config gives the model class for --quantize, --parts and --rules, and has no effect "
            "without them."
        )
