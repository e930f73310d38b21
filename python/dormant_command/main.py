"""`main` runs the command `dormant`, from its arguments to its exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeAlias

from dormant_command.outcome import (
    FAILED,
    INTERRUPTED,
    SIGNALLED,
    Outcome,
    UsageError,
    code_of,
    describe,
    message_of,
)
from dormant_command.parser import Unparsable, check, parse
from dormant_command.signals import Terminated, ending_raises
from dormant_command.streams import BesideBars

Progress: TypeAlias = bool | Callable[[int, int], object] | None


def main(
    arguments: Sequence[str] | None = None,
    *,
    progress: bool | Callable[[int, int], object] | None = None,
) -> int:
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
    options = argparse.Namespace(command=None, json="--json" in given, debug=False)
    try:
        options = parse(given)
        check(options)
        options.progress = progress
        with ending_raises(), _apart_from_the_result():
            # Imports torch.
            subcommand = importlib.import_module(f"dormant.cli.{options.command}")
            outcome: Outcome = subcommand.run(options)
    except Unparsable as error:
        error.parser.print_usage(sys.stderr)
        options.command = error.parser.prog.partition(" ")[2] or None
        return _failed(UsageError(str(error)), options)
    except KeyboardInterrupt as error:
        return _interrupted(error, options)
    except Exception as error:
        return _failed(error, options)
    return _print(outcome, options)


@contextlib.contextmanager
def _apart_from_the_result() -> Iterator[None]:
    """Sends what imported code prints to stderr, and not into the middle of a progress bar."""
    if sys.stderr is None:  # closed by the parent process
        with contextlib.redirect_stdout(None):
            yield
        return
    beside: Any = BesideBars(sys.stderr)
    try:
        with contextlib.redirect_stderr(beside), contextlib.redirect_stdout(beside):
            yield
    finally:
        beside.finish()


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
