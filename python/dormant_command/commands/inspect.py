"""The arguments of `dormant inspect`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import add_reading_options, positive

SUMMARY = "show the contents of a checkpoint: tensors, dtypes, sizes, duplicates, parts"
DESCRIPTION = """\
    Shows the contents of a checkpoint as a tree of modules with totals: tensors, elements, bytes,
    dtypes and shapes. Numbered siblings with equal contents share one row, whose counts include all
    of them. Only the descriptions of tensors are read (some kilobytes of each file, also for URLs),
    except with --hash, and for tensors that all parts of a tensor-parallel set must have equal.
"""
EXAMPLES = """\
    examples:
      dormant inspect model.safetensors
      dormant inspect llama-2-13b --depth 2
      dormant inspect hf://Qwen/Qwen3-0.6B
      dormant inspect pytorch_model.bin --tensors --hash
      dormant inspect llama-3-8b-Q4_K_M.gguf
      dormant inspect checkpoint --json | jq '.totals.nbytes'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a file, an index or a folder, or the URL of one; several become one checkpoint",
    )
    parser.add_argument(
        "--depth", metavar="N", type=positive, help="show N levels of the tree (default: all)"
    )
    parser.add_argument(
        "--tensors", action="store_true", help="list every tensor instead of the tree"
    )
    parser.add_argument(
        "--hash",
        action="store_true",
        help="read all tensors, also find tensors with equal contents, and add SHA-256 to --json",
    )
    add_reading_options(parser, "show")
