"""The arguments of `dormant diff`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import add_reading_options, add_rename_option

SUMMARY = "compare two checkpoints: names, shapes, dtypes, bits, largest differences"
DESCRIPTION = """\
    Compares the tensors of two checkpoints by name: whether both have them, with the same shape,
    dtype and bits. For tensors of one shape that differ it shows how many elements differ, and the
    largest absolute difference. NaNs with the same bits are equal. The checkpoints may have
    different formats and shards; encoded tensors (fp8, GGUF, ...) are compared decoded. Tensors are
    streamed. The exit code is 0 if everything is equal, and 1 if not.
"""
EXAMPLES = """\
    examples:
      dormant diff pytorch_model.bin model.safetensors
      dormant diff step-1000 step-2000
      dormant diff base finetuned --rename model.=  # names of A, as B has them
      dormant diff a b --no-values && echo same names, shapes and dtypes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(), metavar=name, help="a file, an index or a folder, or the URL of one"
        )
    add_rename_option(
        parser,
        "compare a name of A, or names that begin with OLD if it ends with a dot, as NEW",
    )
    parser.add_argument(
        "--no-values", action="store_true", help="compare names, shapes and dtypes only"
    )
    add_reading_options(parser, "compare")
