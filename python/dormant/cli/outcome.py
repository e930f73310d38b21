"""What a subcommand returns, and the exit codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dormant.text.printable import printable

_PREFIX = re.compile(r"(\[Errno \d+\] )?(dormant: )?")

OK = 0
NOT_OK = 1
USAGE = 2
FAILED = 3
SIGNALLED = 128
INTERRUPTED = SIGNALLED + 2

EXIT_CODES = """\
exit codes:
  0    done; what was checked is fine
  1    what was read is not fine: a damaged file, contents or names that do not fit
  2    wrong usage: arguments, or an output that exists (see --force)
  3    it could not be done: a file that cannot be read or written, a library that is not
       installed, something that is not supported
  130  interrupted with Ctrl-C; no incomplete output is left
  143  ended by SIGTERM, as from kill or a scheduler (129: a closed terminal); likewise
"""


class UsageError(Exception):
    """Arguments that cannot be used together, or that ask to overwrite something."""


@dataclass(frozen=True)
class Outcome:
    """The result of a subcommand.

    Attributes:
        data: what `--json` prints besides "command" and "ok"; its keys are stable.
        text: what is printed otherwise.
        code: the exit code; "ok" is true where it is 0.
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
    """The text of an error, one that a terminal shows as it is."""
    # str of a KeyError is the repr of its argument, unless its class says otherwise.
    plain = type(error) is KeyError and error.args and isinstance(error.args[0], str)
    text = str(error.args[0]) if plain else str(error)
    # OSError puts "[Errno 2]" before our text; `describe` has the number.
    text = _PREFIX.sub("", text, count=1)
    return "\n".join(printable(line) for line in (text or type(error).__name__).splitlines())
