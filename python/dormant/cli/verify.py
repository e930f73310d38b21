"""`dormant verify` checks whether every byte of checkpoints can be read."""

from __future__ import annotations

import argparse
from typing import Any

from dormant.checkpoint.api import open_checkpoint
from dormant.cli.outcome import OK, Outcome, code_of, describe
from dormant.text.printable import printable

NAME = "verify"
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


def run(options: argparse.Namespace) -> Outcome:
    """What was read, or what is wrong, for each path."""
    code = OK
    results: list[dict[str, Any]] = []
    lines = []
    for path in options.paths:
        try:
            verification = open_checkpoint(path).verify(progress=options.progress)
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            code = max(code, code_of(error))
            described = describe(error)
            results.append({"path": path, "ok": False, "error": described})
            lines.append(f"NOT OK  {printable(path)}\n        {described['message']}")
        else:
            results.append({"path": path, "ok": True, **verification.to_dict()})
            lines.append(f"ok      {printable(path)}\n        {verification}")
    return Outcome({"results": results}, "\n".join(lines), code)
