"""The demo runs on small models, finds every bit equal, and would notice if one were not."""

from __future__ import annotations

import importlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "demo"
# Case, and the least tensors that must have been compared.
CASES = {
    "minilm": 103,
    "minilm-pooler": 103,
    "minilm-nf4": 250,
    "llama-write": 21,
    "llama-bfloat16": 22,
    "llama-float32": 22,
    "llama-nf4": 80,
    "llama-int8": 40,
}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )


def test_every_case_is_equal_bit_for_bit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run_demo("--quick", "--out", str(out))
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == "", "what libraries print is in a file"
    results = json.loads((out / "results.json").read_text())["results"]
    assert list(results) == list(CASES)
    table = (out / "table.txt").read_text()
    for name, result in results.items():
        assert result["differences"] == []
        assert result["compared"] >= CASES[name]
        assert result["title"] in table
        for way in ("ordinary", "dormant"):
            measured = result[way]
            assert 0 < measured["seconds"] <= measured["used"]
            assert measured["nbytes"] > 1 << 20
            assert bool(measured["outputs"]) is (name != "llama-write")
            assert len(measured["trace"]) >= 2
            assert measured["peak"] is not None
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    # The weights are real ones: related sentences are nearer than the cat.
    for name in ("minilm", "minilm-pooler", "minilm-nf4"):
        same, *related, cat = results[name]["dormant"]["values"][0]
        assert same == pytest.approx(1)
        assert min(related) > cat + 0.1
    assert {path.name for path in out.iterdir()} - {"libraries.log"} == {
        "picture.png",
        "results.json",
        "table.txt",
    }, "checkpoints are removed"


def test_a_full_disk_is_noticed_before_anything_runs(tmp_path: Path) -> None:
    process = run_demo("--layers", str(10**9), "--out", str(tmp_path))
    assert process.returncode == 2
    assert "are needed. Choose another folder" in " ".join(process.stdout.split())
    assert list(tmp_path.iterdir()) == []


def read_until(terminal: int, awaited: bytes | None) -> bytes:
    """What is printed up to these bytes, or, for None, until nobody has the terminal any more."""
    printed = b""
    while awaited is None or awaited not in printed:
        try:
            printed += os.read(terminal, 4096)
        except OSError:  # how Linux says that it was closed
            assert awaited is None, printed.decode(errors="replace")
            break
    return printed


def test_an_interrupt_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(DEMO), "--quick", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    read_until(ours, b"importing")  # a child was started
    os.killpg(process.pid, signal.SIGINT)
    printed = read_until(ours, None).decode("ascii")
    os.close(ours)
    assert process.wait(60) == 130
    assert "Traceback" not in printed
    said = "demo: interrupted; the temporary checkpoints were removed."
    assert printed.splitlines()[-1].endswith(said)
    assert not list(tmp_path.glob("checkpoints-*"))
    with pytest.raises(ProcessLookupError):
        while True:  # the last ones of the group end by themselves, the test by its time limit
            os.killpg(process.pid, 0)
            time.sleep(0.05)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of the demo, which only its own folder can import."""
    monkeypatch.syspath_prepend(str(DEMO))
    names = ("case", "child", "measurement", "results")
    yield {name: importlib.import_module(name) for name in names}
    for name in (*names, "minilm", "llama"):
        sys.modules.pop(name, None)


def measured(demo: dict[str, ModuleType], **changes: Any) -> Any:
    whole = demo["measurement"].Measurement(
        seconds=1.0,
        used=1.0,
        processor=1.0,
        peak=0,
        start=0,
        trace=(),
        nbytes=4,
        digests={"weight": "(1,) float32 aa", "bias": "(1,) float32 bb"},
        outputs="cc",
        values=[],
    )
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digests": {"weight": "(1,) float32 aa", "bias": "(1,) float32 bc"}}, "bias: .* bb .*bc"),
        ({"digests": {"weight": "(1,) float32 aa"}}, "bias: .* bb .*nothing with Dormant"),
        ({"outputs": "cd"}, "the outputs of the model differ"),
    ],
)
def test_one_difference_is_named(
    demo: dict[str, ModuleType], changes: dict[str, Any], said: str
) -> None:
    result = demo["results"].Result("case", measured(demo), measured(demo, **changes))
    (line,) = result.differences()
    assert re.search(said, line)
    assert "different: 1" in result.verdict()


def test_the_table_fits_a_terminal_of_80_columns(demo: dict[str, ModuleType]) -> None:
    slow = measured(demo, seconds=999.5, used=999.5, processor=999.5, peak=999 << 20, nbytes=7)
    result = demo["results"].Result("Llama, as stored (bfloat16)", slow, slow)
    console = Console(file=io.StringIO(), width=80)
    console.print(demo["results"].table({"llama": result}))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    row = ["999.50", "s"] * 3 + ["999.0", "MiB", "7", "B"]
    assert ["Llama,", "as", "stored", "(bfloat16)"] in lines
    assert ["ordinary", *row] in lines
    assert ["dormant", *row] in lines
    assert ["equal:", "2", "tensors,", "outputs"] in lines


def test_nothing_compared_is_no_success(demo: dict[str, ModuleType]) -> None:
    nothing = measured(demo, digests={}, outputs="")
    result = demo["results"].Result("case", nothing, nothing)
    assert result.differences() == ["case: nothing was compared"]
    equal = demo["results"].Result("case", measured(demo), measured(demo))
    assert equal.differences() == []


def test_a_way_that_fails_says_why(demo: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(demo["measurement"].Failed, match=r"(?s)demo: .*config\.json"):
        demo["measurement"].measure(
            "minilm",
            "dormant",
            tmp_path,
            tmp_path / "log",
            lambda step, done, above: None,
            quick=True,
        )
