"""The arguments of `dormant summary`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import positive

SUMMARY = "show how much memory a model needs, by dtype, quantization and number of ranks"
DESCRIPTION = """\
    Constructs a model lazily, which takes no memory, and shows the bytes of its parameters and
    buffers: in each dtype and quantized, whole and for each rank if fully_shard divides it evenly.
    Every rank holds buffers, and the scales of quantized layers, whole. Activations, gradients and
    optimizers are not included.

    MODEL is a config.json of transformers, a folder that contains one, or module:callable, which is
    imported (with the current folder on the path) and called without arguments to get the model.
"""
EXAMPLES = """\
    examples:
      dormant summary llama/config.json
      dormant summary llama --ranks 8 64
      dormant summary train:build_model --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument("model", metavar="MODEL", help="see above")
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=positive,
        nargs="+",
        default=[2, 4, 8],
        help="numbers of ranks to show (default: 2 4 8)",
    )
