"""The example of a tensor-parallel checkpoint: on one rank and on two, equal to the eager way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "quantize_tensor_parallel.py"


def test_four_files_into_one_and_two_ranks() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--features", "256", "--layers", "2"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert [line.split(":")[0] for line in lines] == [
        "rank 0 of 1",
        "rank 0 of 2",
        "rank 1 of 2",
    ]
    assert all(line.endswith("have the bits of the eager way") for line in lines)
