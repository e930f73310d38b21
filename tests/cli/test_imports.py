"""The command answers what concerns its arguments alone without importing torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dormant_command
from dormant.cli.measurements import MEASUREMENTS, SHAPES
from dormant_command.commands import bench
from dormant_command.parser import COMMANDS

HERE = str(Path(dormant_command.__file__).parents[1])


def start(torch: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    """The command, in a process where `import torch` runs the file `torch`."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": f"{torch.parent}{os.pathsep}{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


MAIN = "import sys; from dormant_command.main import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--version"], 0, "dormant "),
        (["--help"], 0, "exit codes:"),
        *((([command, "--help"]), 0, f"usage: dormant {command}") for command in COMMANDS),
        ([], 2, "usage: dormant "),
        (["absent"], 2, "invalid choice: 'absent'"),
        (["inspect"], 2, "usage: dormant inspect"),
        (["inspect", "in", "--absent"], 2, "usage: dormant inspect"),
        (["convert", "in", "out", "--max-shard-size", "0GB"], 2, "size like 5GB"),
        (["convert", "in", "out", "--dtype", "int8"], 2, "expected one of float64"),
        (["convert", "in", "out", "--quantize", "nf4", "--parts", "2"], 2, "together"),
        (["bench", "absent"], 2, "unknown measurement 'absent'"),
    ],
)
def test_no_torch_is_imported(
    tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    torch = tmp_path / "torch.py"
    torch.write_text("raise ImportError('torch was imported')")
    process = start(torch, MAIN, *arguments)
    out, err = process.communicate(timeout=120)
    assert expected in out + err
    assert "torch was imported" not in out + err
    assert process.returncode == code


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_torch_is_imported_shows_no_traceback(
    tmp_path: Path, ending: signal.Signals
) -> None:
    torch = tmp_path / "torch.py"
    torch.write_text("import sys, time\nprint('importing', file=sys.stderr, flush=True)\n"
                     "time.sleep(100)")  # fmt: skip
    process = start(torch, MAIN, "inspect", "in")
    assert process.stderr is not None
    assert process.stderr.readline() == "importing\n"
    process.send_signal(ending)
    out, err = process.communicate(timeout=120)
    how = "interrupted" if ending == signal.SIGINT else "terminated"
    assert (process.returncode, out, err) == (128 + ending, "", f"dormant inspect: {how}\n")


def test_what_arguments_may_name_is_what_there_is() -> None:
    assert tuple(MEASUREMENTS) == bench.MEASUREMENTS
    assert tuple(SHAPES) == bench.SIZES
