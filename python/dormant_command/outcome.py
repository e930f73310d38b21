"""The result of a subcommand, and the exit codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dormant_command.text import printable

# What the message of an error of the library begins with. The command names itself instead.
_PREFIX = re.compile(
    r"(\[Errno \d+\] )?(dormant: )?"
    r"((open_checkpoint|verify|load|save|quantize|materialize|split|convert): )?"
)

OK = 0
NOT_OK = 1
USAGE = 2
FAILED = 3
SIGNALLED = 128
INTERRUPTED = SIGNALLED + 2

EXIT_CODES = """\
exit codes:
  0    the command succeeded, and everything that it checked is fine
  1    the input is not fine: a damaged file, contents or names that do not match
  2    wrong usage: invalid arguments, or an output that exists (see --force)
  3    the command failed: a file cannot be read or written, a library is not installed, or
       a feature is not supported
  130  interrupted with Ctrl-C; no incomplete output is left
  143  terminated by SIGTERM, as sent by kill and schedulers (129: the terminal was closed);
       no incomplete output is left
"""


class UsageError(Exception):
    """Arguments that cannot be used together, or that ask to overwrite something."""


@dataclass(frozen=True)
class Outcome:
    """The result of a subcommand.

    Attributes:
        data: what `--json` prints in addition to "command" and "ok"; its keys are stable.
        text: what is printed without `--json`.
        code: the exit code; "ok" is true if it is 0.
    """

    data: dict[str, Any]
    text: str
    code: int = OK


def code_of(error: Exception) -> int:
    """The exit code for an error that ended a subcommand."""
    if isinstance(error, UsageError):
        return USAGE
    return NOT_OK if isinstance(error, ValueError | KeyError) else FAILED


def describe(error: BaseException) -> dict[str, Any]:
    """An error for `--json`."""
    described: dict[str, Any] = {"type": type(error).__name__, "message": message_of(error)}
    if isinstance(error, OSError) and error.errno is not None:
        described["errno"] = error.errno
    return described


def message_of(error: BaseException) -> str:
    """The text of an error without its prefixes, with only characters that a terminal can show."""
    # str of a KeyError is the repr of its argument, unless its class says otherwise.
    plain = type(error) is KeyError and error.args and isinstance(error.args[0], str)
    text = str(error.args[0]) if plain else str(error)
    # OSError puts "[Errno 2]" before our text; `describe` gives the number.
    text = _PREFIX.sub("", text, count=1)
    return "\n".join(printable(line) for line in (text or type(error).__name__).splitlines())
