"""Messages of libraries do not break progress bars on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import dormant_command

# Logs from a handler that was created at import, and prints, while the bar is shown.
NOISY = """
import itertools, logging, sys, threading, time
import torch

logger = logging.getLogger("noisy")
logger.addHandler(logging.StreamHandler())
out, err = sys.stdout, sys.stderr  # not what they are when the command has ended

def speak():
    for number in itertools.count():
        logger.error("noise %d", 3 * number)
        print("noise", 3 * number + 1, file=err)
        print("noise", end=" ", file=out)
        time.sleep(0.01)
        print(3 * number + 2, file=out)

def build():
    threading.Thread(target=speak, daemon=True).start()
    return torch.nn.Sequential(*(torch.nn.Linear(1500, 1500) for _ in range(12)))
"""
PROGRAM = """
import sys
import dormant.reporting.progress as progress
from dormant_command.main import main
progress._PATIENCE = 0.0
sys.exit(main(["init", "noisy:build", "out", "--memory-budget", "8MiB"]))
"""


def screen(output: str) -> list[str]:
    """The lines of a terminal after `output`, which moves the cursor by \\r, \\n and up only."""
    lines, row, column = [""], 0, 0
    text = output.replace("\x1b[A", "\x00")
    for character in text:
        if character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif character == "\x00":
            row -= 1
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_lines_appear_above_the_bar(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(dormant_command.__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    try:
        while data := os.read(ours, 65536):
            output += data
    except OSError:  # of a terminal whose other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, output
    text = output.decode()
    assert "save:" in text  # the bar
    lines = screen(text.partition("save:")[2])
    # A line that was begun before the bar came, and one that the end of the process cut.
    lines = lines[1:-1]
    numbers = [int(line.removeprefix("noise ")) for line in lines]
    assert len(numbers) > 20
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
