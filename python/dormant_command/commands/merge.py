"""The arguments of `dormant merge`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import add_output_options, dtype

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
