"""Pictures of reports and summaries, timelines of memory, and what notebooks show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from itertools import cycle, pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from torch import nn

import dormant
from dormant.reporting.memory import MemorySample, MemoryTrace, resident_and_mapped_bytes, thinned
from dormant.reporting.plot import _COLORS, by_part
from dormant.reporting.report import Origin, Report, TensorReport
from dormant.text.table import format_html_table

MIB = 1 << 20


def lazy_model() -> nn.Module:
    with dormant.lazy_init():
        return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8))


@pytest.fixture
def report() -> Report:
    return dormant.materialize(lazy_model(), trace_memory=True)


# ---- timelines


# In a process of its own: where other tests freed memory, nothing would grow.
_TRACED = """
import json, sys, torch, dormant
with dormant.lazy_init():
    layer = torch.nn.Linear(4096, 4096, bias=False)
if sys.argv[1] == "load":
    state = {"weight": torch.ones(4096, 4096)}
    report = dormant.load(layer, state, trace_memory=True)
else:
    report = dormant.materialize(layer, trace_memory=True)
assert "matplotlib" not in sys.modules, "only who draws waits for it"
print(json.dumps(report.to_dict()))
"""


@pytest.mark.parametrize("operation", ["materialize", "load"])
def test_a_timeline_shows_memory_grow_by_the_weights(operation: str) -> None:
    command = [sys.executable, "-c", _TRACED, operation]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    report = json.loads(done.stdout)
    times, resident, mapped = zip(*report["memory_trace"], strict=True)
    assert list(times) == sorted(times)
    assert times[0] < 0.05
    assert times[-1] >= report["seconds"]
    assert max(times) < report["seconds"] + 5
    assert resident[-1] - resident[0] > 56 * MIB
    assert all(0 < part <= whole for part, whole in zip(mapped, resident, strict=True))
    assert report["peak_memory"] >= max(resident)


def test_nothing_is_traced_unless_asked() -> None:
    report = dormant.materialize(lazy_model())
    assert report.memory_trace == ()
    assert "dormant memory trace" not in {thread.name for thread in threading.enumerate()}


def test_tracing_ends_with_the_operation_even_if_that_fails(report: Report) -> None:
    assert report.memory_trace
    with pytest.raises(KeyError):
        dormant.load(lazy_model(), {"no": torch.ones(1)}, trace_memory=True)
    assert "dormant memory trace" not in {thread.name for thread in threading.enumerate()}


def test_samples_come_while_the_main_thread_computes() -> None:
    with MemoryTrace() as trace:
        matrix = torch.ones(1000, 1000)
        until = time.perf_counter() + 0.5
        while time.perf_counter() < until:
            matrix = matrix @ matrix.clamp(max=1e-3)
    gaps = [
        after.seconds - before.seconds
        for before, after in zip(trace.samples, trace.samples[1:], strict=False)
    ]
    assert len(gaps) > 10
    assert sum(gaps) >= 0.5


def test_pages_of_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(32 * MIB))
    before = resident_and_mapped_bytes()
    mapped = torch.from_file(str(path), size=32 * MIB, dtype=torch.uint8)
    assert int(mapped.sum()) == 0
    after = resident_and_mapped_bytes()
    assert before is not None
    assert after is not None
    assert after[0] - before[0] > 24 * MIB
    assert after[1] - before[1] > 24 * MIB


def test_a_long_timeline_gets_thinner_but_keeps_its_peak() -> None:
    samples = [MemorySample(float(i), 1000 if i == 57 else i, 0) for i in range(101)]
    shorter = thinned(samples)
    assert len(shorter) == 51
    assert MemorySample(57.0, 1000, 0) in shorter
    assert set(shorter) <= set(samples)
    assert shorter == sorted(shorter)


def test_a_process_that_does_not_exist_has_no_timeline() -> None:
    with MemoryTrace(process=2**22 + 1) as trace:
        pass
    assert trace.samples == ()


# ---- pictures


def text_of(picture: Path) -> str:
    """What an SVG file says; matplotlib draws letters, and names each text in a comment."""
    return " ".join(re.findall(r"<!-- (.*?) -->", picture.read_text()))


def test_a_report_draws_its_parts_and_memory_over_time(report: Report, tmp_path: Path) -> None:
    report.plot(tmp_path / "report.svg")
    text = text_of(tmp_path / "report.svg")
    for shown in ("0.weight", "1.running_mean", "initialized", "seconds", "resident"):
        assert shown in text
    dormant.materialize(lazy_model()).plot(tmp_path / "untraced.svg")
    assert "seconds" not in text_of(tmp_path / "untraced.svg")


def test_without_a_path_the_figure_is_returned(report: Report) -> None:
    for figure in (report.plot(), dormant.summary(lazy_model()).plot()):
        assert isinstance(figure, Figure)
        # Notebooks call this.
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert "matplotlib.pyplot" not in sys.modules, "it would choose a window system"


@pytest.mark.parametrize("nbytes", [1, 1000, 640 * 1024, 2560 * 1024, 3 << 30, 513 << 30, 99 << 40])
def test_nothing_in_a_picture_hides_or_leaves_it(nbytes: int) -> None:
    names = [f"a_module_with_a_long_name.another_one.$layer_{i}.weight" for i in range(9)]
    tensors = [
        TensorReport((name,), (), "uint8", nbytes // (i + 1), origin, 0, i, None)
        for i, (name, origin) in enumerate(zip(names, cycle(get_args(Origin)), strict=False))
    ]
    trace = tuple(MemorySample(i / 7, nbytes * i // 6, 0) for i in range(7))
    report = Report(tensors, 9, nbytes, nbytes, 0, 1.0, None, memory_trace=trace)
    figure = report.plot()
    figure.draw_without_rendering()
    picture = figure.bbox
    for axes in figure.axes:
        (legend,) = (each for each in axes.get_children() if isinstance(each, Legend))
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [
                tick.label1.get_window_extent()
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high
            ]
            assert len(labels) >= 2
            for before, after in pairwise(labels):
                assert not before.overlaps(after)
            for box in (*labels, legend.get_window_extent(), axes.title.get_window_extent()):
                assert picture.x0 <= box.x0 <= box.x1 <= picture.x1
                assert picture.y0 <= box.y0 <= box.y1 <= picture.y1


def test_every_origin_has_a_color() -> None:
    assert _COLORS.keys() == {*get_args(Origin), "lazy"}


def test_a_summary_draws_what_is_lazy(tmp_path: Path) -> None:
    model = lazy_model()
    dormant.materialize(model[0])
    found = dormant.summary(model)
    found.plot(tmp_path / "summary.svg")
    text = text_of(tmp_path / "summary.svg")
    assert "lazy" in text
    assert "real" in text
    assert "16.3 KiB now" in text
    assert dormant.is_lazy(model), "a picture must not materialize"
    dormant.summary(nn.Identity()).plot(tmp_path / "empty.svg")


def test_the_suffix_chooses_the_format(report: Report, tmp_path: Path) -> None:
    report.plot(str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing"):
        report.plot(tmp_path / "report.nothing")
    assert not (tmp_path / "report.nothing").exists()
    with pytest.raises(OSError, match="No such file"):
        report.plot(tmp_path / "no folder" / "report.png")


def test_without_matplotlib_the_error_says_what_to_install(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"Report\.plot: .* pip install 'dormant\[plots\]'"):
        report.plot(tmp_path / "report.png")
    with pytest.raises(ImportError, match=r"Summary\.plot: "):
        dormant.summary(lazy_model()).plot(tmp_path / "summary.png")


def test_parts_are_as_deep_as_twelve_bars_allow() -> None:
    few = [(f"model.layers.{i}.w", "lazy", 10) for i in range(3)]
    assert by_part([*few, ("model.layers.0.b", "real", 1)]) == {
        "model.layers.0.w": {"lazy": 10},
        "model.layers.0.b": {"real": 1},
        "model.layers.1.w": {"lazy": 10},
        "model.layers.2.w": {"lazy": 10},
    }
    many = [(f"model.layers.{i}.w", "lazy", 10) for i in range(30)]
    assert by_part([*many, ("head.w", "real", 7)]) == {
        "model.layers": {"lazy": 300},
        "head.w": {"real": 7},
    }
    assert by_part([]) == {}


def test_of_very_many_parts_the_largest_are_drawn_and_none_is_forgotten() -> None:
    parts = by_part([(f"w{i}", "lazy", i) for i in range(100)])
    assert list(parts) == [*(f"w{i}" for i in range(89, 100)), "89 others"]
    assert sum(kinds["lazy"] for kinds in parts.values()) == sum(range(100))


# ---- notebooks


class Cells(HTMLParser):
    """Collects the text of a page, and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def cells(page: str) -> list[str]:
    parser = Cells()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.text


def test_notebooks_show_what_the_text_says(report: Report) -> None:
    shown: list[Report | dormant.Summary] = [report, dormant.summary(lazy_model())]
    for item in shown:
        words = " ".join(cells(item._repr_html_())).split()
        assert words
        assert set(words) == {word for word in str(item).split() if not set(word) <= {"─"}}


def test_a_checkpoint_lists_its_tensors(tmp_path: Path) -> None:
    torch.save(
        {"weight": torch.ones(2, 3), "<i>": torch.ones((), dtype=torch.int8)}, tmp_path / "a"
    )
    page = dormant.open_checkpoint(tmp_path / "a")._repr_html_()
    text = cells(page)
    assert text[0].endswith("2 tensors, 25 B)")
    assert text[1:6] == ["tensor", "shape", "dtype", "bytes", "file"]
    assert text[6:11] == ["weight", "2x3", "float32", "24 B", "a"]
    assert text[11:16] == ["<i>", "scalar", "int8", "1 B", "a"]


def test_names_cannot_smuggle_in_tags() -> None:
    page = format_html_table(("name", "n"), [("<script>&", "1")] * 50, ["<b>"])
    assert "<script" not in page
    assert "<b>" not in page
    text = cells(page)
    assert text.count("<script>&") == 40
    assert "... 10 more ..." in text
