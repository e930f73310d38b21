"""`make bench-guard`: the times of two checkouts, and their ratios."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_guard  # noqa: E402


def test_times_are_found_and_nothing_else() -> None:
    measurements = [
        {"contestant": "dormant", "size": 7, "samples": [{"seconds": 2.0, "peak": 3.5}] * 2},
        {"operator": "add", "eager": [1.0, 3.0, 2.0], "lazy": [4.0], "share": 0.5},
    ]
    assert dict(bench_guard.figures("task", measurements)) == {
        "task, dormant, 7, samples.seconds": 2.0,
        "task, add, eager": 2.0,
        "task, add, lazy": 4.0,
    }


def test_ratios_of_medians_the_slowest_first() -> None:
    base = {"a": [1.0, 2.0, 9.0], "b": [1.0], "gone": [1.0]}
    here = {"a": [3.0, 1.0, 4.0], "b": [0.5], "new": [1.0]}
    assert [line.split() for line in bench_guard.table(base, here)] == [
        ["here/base", "base", "here"],
        ["1.50", "2", "3", "a"],
        ["0.50", "1", "0.5", "b"],
        ["only", "in", "base:", "gone"],
        ["only", "in", "this", "checkout:", "new"],
    ]


def test_a_checkout_against_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_guard.main([str(ROOT), "--only", "operators", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    ratio, base, here, *figure = lines[1].split()
    assert float(ratio) > 0
    assert float(base) > 0
    assert float(here) > 0
    assert figure[0] == "operators,"


def test_a_checkout_that_was_not_built_is_refused(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "tools/bench_guard.py", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "no built package" in ended.stderr
