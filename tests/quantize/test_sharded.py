"""Two ranks with FSDP: shards of packed bytes with the statistics of the whole, or a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

JOB = Path(__file__).with_name("shard_job.py")
# Before what this process was given, which may be where dormant lies.
PATHS = [
    str(JOB.parent),
    str(JOB.parents[1] / "lib"),
    *filter(None, [os.environ.get("PYTHONPATH")]),
]


CASES = (
    "from_recipes",
    "from_a_checkpoint",
    "refusals",
    "parallel_layers",
    "fsdp1",
    "int8_left_out",
    "experts",
)


# Of packed bytes; docs/limits.md says what to do.
NEEDS_INTEGERS = {"from_recipes", "from_a_checkpoint", "parallel_layers", "experts"}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, tmp_path: Path) -> None:
    if case in NEEDS_INTEGERS and torch.__version__.startswith("2.11."):
        pytest.skip("fully_shard of torch 2.11 takes floating-point parameters only")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(JOB), case, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            output, errors = rank.communicate(timeout=200)
            assert rank.returncode == 0, errors
            assert output == "done\n"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
