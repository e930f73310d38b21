"""Code run in a process of its own, whose memory and reads nothing else has a part in."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any


def in_child(prelude: str, code: str) -> dict[str, Any]:
    """Runs `prelude` and then `code`, each dedented, in a new process.

    Args:
        prelude: imports, and what a process needs only once.
        code: what is measured; the last line that it prints is JSON.

    Returns:
        What it printed.
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def sees_the_memory(found: dict[str, Any]) -> bool:
    """Whether resident memory has grown by what is there at the end, as a peak must not miss it.

    Only roughly: a system that is short of memory takes pages of files away meanwhile.
    """
    grown, final = found["grown"], found["final"]
    return bool(grown >= final * 3 // 4)
