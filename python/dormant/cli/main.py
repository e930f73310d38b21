"""`main`: the command `dormant`, from its arguments to its exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn, TextIO

from dormant.cli import bench, convert, init, inspect, verify
from dormant.cli.outcome import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    SIGNALLED,
    Outcome,
    UsageError,
    code_of,
    describe,
    message_of,
)
from dormant.cli.signals import Terminated, ending_raises
from dormant.reporting.progress import Callback

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


def main(arguments: Sequence[str] | None = None, *, progress: bool | Callback | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what follows the name of the program; None takes them from `sys.argv`.
        progress: for who runs it from Python, as for `dormant.save`: a function is called with
            (done, total) bytes, True shows a bar, False none; None shows one on a terminal.

    Returns:
        The exit code, which `dormant --help` explains.

    Raises:
        SystemExit: `--help` and `--version`, when they have printed (0).

    Example:
        >>> main(["inspect", "/nowhere", "--json"])  # doctest: +ELLIPSIS
        {...
        3
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names in files and lines of tables may be beyond what a terminal can show.
            stream.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(given)
    except _Unparsable as error:
        error.parser.print_usage(sys.stderr)
        command = error.parser.prog.partition(" ")[2] or None
        options = argparse.Namespace(command=command, json="--json" in given, debug=False)
        return _failed(UsageError(str(error)), options)
    options.progress = progress
    try:
        # What imported code prints must not come between the lines of the result.
        with ending_raises(), contextlib.redirect_stdout(sys.stderr):
            outcome: Outcome = options.run(options)
    except KeyboardInterrupt as error:
        return _interrupted(error, options)
    except Exception as error:
        return _failed(error, options)
    return _print(outcome, options)


class _Unparsable(Exception):
    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Unparsable(self, message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dormant",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"dormant {importlib.metadata.version('dormant')}"
    )
    everywhere = _Parser(add_help=False)
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
        _show(text, sys.stdout)
    except OSError as error:
        reason = OSError(error.errno, f"the result cannot be printed: {error.strerror}")
        return _failed(reason, options)
    return outcome.code


def _failed(error: Exception, options: argparse.Namespace) -> int:
    code = code_of(error)
    if options.debug:
        traceback.print_exception(error)
    prefix = _name(options)
    text = f"{prefix}: {message_of(error).removeprefix(f'{options.command}: ')}"
    if code == FAILED and not isinstance(error, OSError | ImportError | NotImplementedError):
        text += f"\n({type(error).__name__}; --debug shows where)"
    _end(text, describe(error), code, options)
    return code


def _interrupted(error: KeyboardInterrupt, options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exception(error)
    terminated = isinstance(error, Terminated)
    code = SIGNALLED + error.number if isinstance(error, Terminated) else INTERRUPTED
    message = "terminated" if terminated else "interrupted"
    kind = type(error).__name__ if terminated else "KeyboardInterrupt"
    text = f"{_name(options)}: {message}"
    _end(text, {"type": kind, "message": message}, code, options)
    return code


def _end(text: str, error: Mapping[str, object], code: int, options: argparse.Namespace) -> None:
    with contextlib.suppress(OSError):
        _show(text, sys.stderr)
    if options.json:
        with contextlib.suppress(OSError):
            _show(_document(options, code, error=error), sys.stdout)


def _show(text: str, stream: TextIO | None) -> None:
    """Prints; a reader who has enough, as `| head`, is no error."""
    if stream is None:  # closed by who started the process
        return
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        # Python flushes once more when it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _name(options: argparse.Namespace) -> str:
    return "dormant" if options.command is None else f"dormant {options.command}"


def _document(options: argparse.Namespace, code: int, **data: object) -> str:
    return json.dumps({"command": options.command, "ok": code == 0, **data}, indent=2, default=str)
