"""Has clang check that what a mutex guards is touched only where it is held (csrc/system/mutex.h).

Usage: check_thread_safety.py build/compile_commands.json
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# What the ordinary compiler warns of is its own matter, and clang does not know all its options.
KEPT = ("-I", "-D", "-std=")
KEPT_WITH_VALUE = ("-isystem", "-I", "-D")


def main() -> int:
    """Returns 1 where clang has found something."""
    commands_file = Path(sys.argv[1])
    clang = shutil.which("clang++")
    if clang is None:
        print("thread safety: not checked, there is no clang++", file=sys.stderr)
        return 0
    if not commands_file.exists():
        print(
            f"thread safety: not checked, there is no {commands_file}: make build", file=sys.stderr
        )
        return 0
    commands = [
        [clang, "-fsyntax-only", "-Wthread-safety", "-Werror=thread-safety", *kept, entry["file"]]
        for entry in json.loads(commands_file.read_text())
        if _uses_the_mutex(Path(entry["file"]))
        for kept in [_kept(shlex.split(entry["command"]))]
    ]
    if not commands:
        print(f"thread safety: {commands_file} names no file with a mutex", file=sys.stderr)
        return 1
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda command: subprocess.run(command, check=False), commands))
    return int(any(result.returncode for result in results))


def _uses_the_mutex(source: Path) -> bool:
    """Whether the file, or the header of its unit, includes the annotated mutex."""
    return any(
        file.exists() and '#include "system/mutex.h"' in file.read_text()
        for file in (source, source.with_suffix(".h"))
    )


def _kept(command: list[str]) -> list[str]:
    kept: list[str] = []
    arguments = iter(command[1:])
    for argument in arguments:
        if argument in KEPT_WITH_VALUE:
            kept += [argument, next(arguments)]
        elif argument.startswith(KEPT):
            kept.append(argument)
    return kept


if __name__ == "__main__":
    sys.exit(main())
