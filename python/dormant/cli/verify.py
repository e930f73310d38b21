"""`dormant verify` checks whether every byte of checkpoints can be read."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from dormant.checkpoint.api import open_checkpoint
from dormant.text.printable import printable
from dormant_command.outcome import OK, Outcome, code_of, describe


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
            reason = describe(error)
            results.append({"path": path, "ok": False, "error": reason})
            lines.append(f"NOT OK  {printable(path)}\n        {reason['message']}")
        else:
            results.append({"path": path, "ok": True, **verification.to_dict()})
            described = textwrap.indent(str(verification), " " * 8)
            lines.append(f"ok      {printable(path)}\n{described}")
    return Outcome({"results": results}, "\n".join(lines), code)
