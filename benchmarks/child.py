"""Calls a function in a fresh Python process, so that its memory and its caches are its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_MARK = "benchmark result: "
_ROOT = Path(__file__).parent.parent
_TIMEOUT = 900  # seconds


class Unavailable(Exception):
    """The function does not apply here; the message says why."""


def call(function: str, **arguments: Any) -> Any:
    """Calls `package.module:name` with keyword arguments in a new process.

    Args:
        function: where it is.
        arguments: values that JSON can hold.

    Returns:
        What it returned, through JSON.

    Raises:
        Unavailable: it raised NotImplementedError.
        RuntimeError: it failed in another way; the message ends with what it printed.
    """
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)],
        cwd=_ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    for line in reversed(process.stdout.splitlines()):
        if line.startswith(_MARK):
            answer = json.loads(line.removeprefix(_MARK))
            if "unavailable" in answer:
                raise Unavailable(answer["unavailable"])
            return answer["value"]
    raise RuntimeError(
        f"benchmarks: {function}({arguments}) ended with {process.returncode} and without a "
        f"result:\n{process.stderr[-2000:]}"
    )


def main() -> None:
    module, name = sys.argv[1].split(":")
    arguments = json.loads(sys.argv[2])
    function = getattr(importlib.import_module(module), name)
    try:
        answer = {"value": function(**arguments)}
    except NotImplementedError as reason:
        answer = {"unavailable": str(reason)}
    print(_MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
