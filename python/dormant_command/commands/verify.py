"""The arguments of `dormant verify`."""

from __future__ import annotations

import argparse

SUMMARY = "read every byte and compare it with the checksums of the files"
DESCRIPTION = """\
    Opens each PATH, which checks everything that the files say about their tensors, and reads all
    bytes. Files of torch.save have a checksum for each storage, which is compared. Safetensors
    files have none, so only their descriptions are checked, and that every byte can be read. All
    paths are checked, even if the first one is damaged.
"""
EXAMPLES = """\
    examples:
      dormant verify pytorch_model.bin
      dormant verify checkpoints/* && echo all fine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a file, an index or a folder, or the URL of one; each is checked separately",
    )
