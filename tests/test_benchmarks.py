"""Every benchmark runs, compares its outputs before timing, and notices when they differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Task, and the least outputs that must have been compared.
TASKS = {
    "imports": 1,
    "construct": 3,
    "operators": 19,
    "tiny_models": 3,
    "initialize": 6,
    "shard": 4,
    "ranks": 12,
    "jump": 8,
    "load": 17,
    "skip_init": 8,
    "remote": 12,
    "quantize_kernels": 12,
    "quantize_load": 4,
    "quantize_experts": 4,
    "decode": 10,
    "gguf_blocks": 15,
    "distributed_checkpoint": 3,
    "quantize_large": 3,
    "quantize_encoded": 5,
}


def run_benchmark(name: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--only", name, "--quick", "--repeat", "1"]
    return subprocess.run(
        [*command, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )


@pytest.mark.parametrize("name", TASKS)
def test_benchmark_runs_and_its_outputs_are_equal(name: str, tmp_path: Path) -> None:
    process = run_benchmark(name, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    outcome = json.loads((tmp_path / f"{name}.json").read_text())
    assert outcome["compared"] >= TASKS[name]
    assert outcome["mismatches"] == []
    assert outcome["measurements"]
    assert all(sheet["rows"] for sheet in outcome["sheets"])


def test_no_task_is_left_out() -> None:
    from benchmarks import EVERY

    assert set(EVERY) == set(TASKS)


def test_unequal_outputs_are_named() -> None:
    from benchmarks import fingerprint
    from benchmarks.outcome import Outcome

    outcome = Outcome("task")
    assert outcome.check("same", fingerprint.differences({"w": "1"}, {"w": "1"}))
    assert not outcome.check("changed", fingerprint.differences({"w": "1"}, {"w": "2"}))
    assert not outcome.check("missing", fingerprint.differences({"w": "1"}, {}))
    assert not outcome.check("added", fingerprint.differences({}, {"w": "1"}))
    assert outcome.compared == 4
    assert [text.split(":")[0] for text in outcome.mismatches] == ["changed", "missing", "added"]


def test_digests_see_every_bit() -> None:
    import torch

    from benchmarks.fingerprint import bits

    zeros = torch.zeros(2, 3)
    negative = zeros.clone()
    negative[0, 1] = -0.0
    assert torch.equal(zeros, negative)
    assert bits(zeros) != bits(negative)
    assert bits(negative.T) != bits(negative)
    assert bits(negative.T) == bits(negative.T.contiguous())
