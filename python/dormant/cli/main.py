"""`main` runs the command `dormant`, from its arguments to its exit code."""

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

from dormant.cli import bench, convert, diff, init, inspect, merge, summary, verify
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


def main(arguments: Sequence[str] | None = None, *, progress: bool | Callback | None = None) -> int:
    """Runs the command.

    Args:
        arguments: the arguments after the name of the program; None takes them from `sys.argv`.
        progress: for calls from Python, as for `dormant.save`: a function is called with (done,
            total) bytes; True shows a bar, False does not; None shows one on a terminal.

    Returns:
        The exit code, which `dormant --help` explains.

    Raises:
        SystemExit: after `--help` and `--version` have printed (0).

    Example:
        >>> main(["inspect", "/nowhere", "--json"])  # doctest: +ELLIPSIS
        {...
        3
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names in files and lines of tables may have characters that a terminal cannot show.
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
        # Output of imported code must not be mixed with the result.
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
    common = everywhere.add_argument_group("options of all commands")
    common.add_argument(
        "--json", action="store_true", help="print a JSON object, even if the command fails"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    for command in (inspect, verify, diff, convert, merge, init, summary, bench):
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
        reason = OSError(error.errno, f"cannot print the result: {error.strerror}")
        return _failed(reason, options)
    return outcome.code


def _failed(error: Exception, options: argparse.Namespace) -> int:
    code = code_of(error)
    if options.debug:
        traceback.print_exception(error)
    prefix = _name(options)
    text = f"{prefix}: {message_of(error)}"
    if code == FAILED and not isinstance(error, OSError | ImportError | NotImplementedError):
        text += f"\n({type(error).__name__}; --debug shows the traceback)"
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
    """Prints; a reader that closes the pipe early, as `| head` does, is not an error."""
    if stream is None:  # closed by the parent process
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
