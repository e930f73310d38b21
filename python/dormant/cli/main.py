"""`main`: the command `dormant`, from its arguments to its exit code."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence

from dormant.cli import bench, convert, init, inspect, verify
from dormant.cli.outcome import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    Outcome,
    code_of,
    describe,
    message_of,
)

_DESCRIPTION = """\
Checkpoints of any size, on a machine of any size: what is in them, whether they can be read, and
other ones made of them. Tensors are streamed; none has to fit into memory.

A checkpoint is a safetensors file, a file of torch.save, an index (*.index.json), a folder that
has one of these, or a tensor-parallel set (consolidated.00.pth, ...).
"""
_EXAMPLES = """\
examples:
  dormant inspect model.safetensors
  dormant verify checkpoint-folder
  dormant convert pytorch_model.bin model.safetensors --dtype bfloat16
  dormant convert llama-2-13b merged          # tensor-parallel parts to one checkpoint
  dormant convert merged four --parts 4       # and to four parts
  dormant convert llama llama-nf4 --quantize nf4
  dormant init llama/config.json random-llama --seed 0
  dormant bench

`dormant COMMAND --help` says more.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what follows the name of the program; None takes them from `sys.argv`.

    Returns:
        The exit code, which `dormant --help` explains.

    Raises:
        SystemExit: `--help`, `--version`, or arguments that cannot be parsed (2).

    Example:
        >>> main(["inspect", "/nowhere", "--json"])  # doctest: +ELLIPSIS
        {...
        3
    """
    options = _parser().parse_args(arguments)
    try:
        outcome: Outcome = options.run(options)
    except KeyboardInterrupt:
        return _interrupted(options)
    except Exception as error:
        return _failed(error, options)
    return _print(outcome, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dormant",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"dormant {importlib.metadata.version('dormant')}"
    )
    everywhere = argparse.ArgumentParser(add_help=False)
    common = everywhere.add_argument_group("everywhere")
    common.add_argument(
        "--json", action="store_true", help="print a JSON object, also if it fails (see the docs)"
    )
    common.add_argument("--debug", action="store_true", help="show where in the code it failed")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    for command in (inspect, verify, convert, init, bench):
        subparser = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=textwrap.dedent(command.DESCRIPTION),
            epilog=textwrap.dedent(command.EXAMPLES) + "\n" + EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[everywhere],
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _print(outcome: Outcome, options: argparse.Namespace) -> int:
    text = _document(options, outcome.code, **outcome.data) if options.json else outcome.text
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough, as with `| head`. Python flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return outcome.code


def _failed(error: Exception, options: argparse.Namespace) -> int:
    code = code_of(error)
    if options.debug:
        traceback.print_exception(error)
    text = f"dormant {options.command}: {message_of(error).removeprefix(f'{options.command}: ')}"
    if code == FAILED and not isinstance(error, OSError | ImportError | NotImplementedError):
        text += f"\n({type(error).__name__}; --debug shows where)"
    print(text, file=sys.stderr)
    if options.json:
        print(_document(options, code, error=describe(error)))
    return code


def _interrupted(options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"dormant {options.command}: interrupted", file=sys.stderr)
    if options.json:
        error = {"type": "KeyboardInterrupt", "message": "interrupted"}
        print(_document(options, INTERRUPTED, error=error))
    return INTERRUPTED


def _document(options: argparse.Namespace, code: int, **data: object) -> str:
    return json.dumps({"command": options.command, "ok": code == 0, **data}, indent=2, default=str)
