"""The arguments of `dormant init`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import add_output_options, default_dtype, seed

SUMMARY = "write a checkpoint with the random weights of eager construction"
DESCRIPTION = """\
    Constructs a model lazily and streams its initial weights to safetensors. They equal those of
    eager construction with the same seed, bit for bit. The model does not have to fit in memory.

    MODEL is a config.json of transformers, a folder that contains one, or module:callable, which is
    imported (with the current folder on the path) and called without arguments to get the model.
"""
EXAMPLES = """\
    examples:
      dormant init llama/config.json random-llama --seed 0 --dtype bfloat16
      dormant init torchvision.models:resnet50 resnet50.safetensors
      dormant init train:build_model start --seed 7
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument("model", metavar="MODEL", help="see above")
    parser.add_argument("out", metavar="OUT", help="a folder, or a file NAME.safetensors")
    parser.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="seed for torch.manual_seed (default: 0)"
    )
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        type=default_dtype,
        help="dtype of the model: float64, float32, float16 or bfloat16 (default: that of the "
        "configuration, otherwise float32)",
    )
    add_output_options(parser)
