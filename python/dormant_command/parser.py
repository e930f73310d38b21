"""The parser of the arguments."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dormant_command.commands import bench, convert, diff, init, inspect, merge, summary, verify
from dormant_command.outcome import EXIT_CODES

COMMANDS = {
    "inspect": inspect,
    "verify": verify,
    "diff": diff,
    "convert": convert,
    "merge": merge,
    "init": init,
    "summary": summary,
    "bench": bench,
}
_DESCRIPTION = """\
Inspects, verifies, converts and writes checkpoints of any size. Tensors are streamed, so neither a
checkpoint nor its largest tensor has to fit in memory.

A checkpoint is a safetensors file, a file of torch.save, an index (*.index.json), a folder that
contains one of these, or a tensor-parallel set (consolidated.00.pth, ...).
"""
_EXAMPLES = """\
examples:
  dormant inspect model.safetensors
  dormant verify checkpoint-folder
  dormant diff step-1000 step-2000
  dormant convert pytorch_model.bin model.safetensors --dtype bfloat16
  dormant convert llama-2-13b merged          # merge tensor-parallel parts
  dormant convert merged four --parts 4       # divide into four parts
  dormant convert llama llama-nf4 --quantize nf4
  dormant merge llama adapter merged-llama
  dormant init llama/config.json random-llama --seed 0
  dormant summary llama/config.json
  dormant bench

`dormant COMMAND --help` lists the options of a command.

"""


class Unparsable(Exception):
    """Arguments that are wrong.

    Attributes:
        parser: of the command, or of the subcommand if it is known.
    """

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Unparsable(self, message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `command` is the name of the subcommand.

    Raises:
        Unparsable: the arguments are wrong.
        SystemExit: after `--help` and `--version` have printed (0).
    """
    parser, subparsers = _parsers()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        # argparse would show the usage of `dormant` alone.
        subparsers[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def check(options: argparse.Namespace) -> None:
    """Raises UsageError if options exclude each other."""
    command = COMMANDS[options.command]
    if hasattr(command, "check"):
        command.check(options)


def _version() -> str:
    """The release of `dormant`, which also runs from a folder on PYTHONPATH, without metadata."""
    header = Path(__file__).resolve().parents[1] / "dormant" / "include" / "dormant" / "version.h"
    return ".".join(re.findall(r"#define DORMANT_VERSION_\w+ (\d+)", header.read_text()))


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, _Parser]]:
    parser = _Parser(
        prog="dormant",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dormant {_version()}")
    everywhere = _Parser(add_help=False)
    common = everywhere.add_argument_group("options of all commands")
    common.add_argument(
        "--json", action="store_true", help="print a JSON object, even if the command fails"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.SUMMARY,
                description=textwrap.dedent(command.DESCRIPTION),
                epilog=textwrap.dedent(command.EXAMPLES) + "\n" + EXIT_CODES,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                parents=[everywhere],
                allow_abbrev=False,
            )
        )
    return parser, commands.choices
