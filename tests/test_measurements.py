"""The numbers and the picture of README and the first page are those of one file."""

from __future__ import annotations

import json
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from pages import ROOT

sys.path.append(str(ROOT / "tools"))

import measurements


def run_of_the_demo(**changes: Any) -> dict[str, Any]:
    case = {
        "differences": [],
        "ordinary": {"used": 12.3456, "peak": 3 << 30},
        "dormant": {"used": 0.3456, "peak": 5 << 20, "nbytes": 1.5 * (1 << 30)},
    }
    cases = {name: {**case, **changes} for name in measurements.TASKS}
    return {"machine": "a machine", "results": {"minilm": case, **cases}}


def test_pages_and_picture_show_the_committed_measurements() -> None:
    measured = json.loads(measurements.DATA.read_text())
    for page in measurements.PAGES:
        assert page.read_text() == measurements.with_table(page.read_text(), measured), (
            f"{page}: run tools/measurements.py"
        )
    assert measurements.PICTURE.read_text() == measurements.picture(measured)
    ElementTree.fromstring(measurements.picture(measured))


def test_a_run_of_the_demo_becomes_the_table() -> None:
    taken = measurements.take_over(run_of_the_demo())
    assert taken["rows"].keys() == measurements.TASKS.keys()
    row = "| load a bfloat16 file as nf4 | 12.3 s, 3.0 GiB | 0.35 s, 5 MiB | 1.5 GiB |"
    assert row in measurements.table(taken)
    assert "; a machine; files in the page cache." in measurements.table(taken)
    drawn = measurements.picture(taken)
    assert drawn.count("<rect") == 1 + 2 * 2 * len(taken["rows"]) + 2
    assert ">12.3 s<" in drawn
    assert ">5 MiB<" in drawn


def test_a_run_with_differences_is_not_taken_over() -> None:
    with pytest.raises(ValueError, match="llama-nf4"):
        measurements.take_over(run_of_the_demo(differences=["a.weight"]))
    lacking = run_of_the_demo()
    del lacking["results"]["llama-int8"]
    with pytest.raises(ValueError, match=r"incomplete.*llama-int8"):
        measurements.take_over(lacking)


def test_a_page_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="one place"):
        measurements.with_table("no place", json.loads(measurements.DATA.read_text()))
