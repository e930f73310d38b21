"""What runs the code of the documentation compares what it prints with what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pages
from pages import blocks, follow_page, run_page

PAGE = """# A page

## First

```python
print("one", 1 + 1)
```

```text title="Output"
one 2
```

```python
x = 3
print("took 0.123 s,", "peak memory 2.5 MiB")
```

```text title="Output"
took 4.5 s, peak memory 300.0 KiB
```

## Second

```python
y = x + 1
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DORMANT_REWRITE_OUTPUT", raising=False)
    # Pages are compared with what one release of torch prints.
    monkeypatch.setattr(pages, "_RELEASE", [torch.__version__.split("+")[0]])
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_a_page_that_shows_what_it_prints_passes(page: Path) -> None:
    assert run_page(page)["y"] == 4
    assert [(block.heading, block.output) for block in blocks(page)] == [
        ("First", "one 2\n"),
        ("First", "took 4.5 s, peak memory 300.0 KiB\n"),
        ("Second", ""),
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("one 2", "one 3", r"page.md:5: .*docs-output.*\n.*\n-one 3\n\+one 2"),
        ("y = x + 1", "print(x)", r"page.md:24: .*\n.*\n\+3"),
        ("x = 3", "x = 3\nprint(x)", r"page.md:13: "),
    ],
)
def test_another_output_is_an_error(page: Path, old: str, new: str, expected: str) -> None:
    page.write_text(PAGE.replace(old, new, 1))
    with pytest.raises(AssertionError, match=expected):
        run_page(page)


def test_pages_are_rewritten_on_request(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = PAGE.replace("one 2\n", "one 3\nand more\n")
    page.write_text(stale.replace("y = x + 1\n", "y = x + 1\nprint(y)\n"))
    monkeypatch.setenv("DORMANT_REWRITE_OUTPUT", "1")
    run_page(page)
    # A time that merely varies stays, so that rewriting changes nothing else.
    assert page.read_text() == PAGE.replace(
        "y = x + 1\n```\n", 'y = x + 1\nprint(y)\n```\n\n```text title="Output"\n4\n```\n'
    )
    monkeypatch.delenv("DORMANT_REWRITE_OUTPUT")
    run_page(page)


def test_files_and_commands_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="program.py"\nprint(2 * 3)\n```\n\n'
        '```sh\npython program.py\npwd\n```\n\n```text title="Output"\n6\n/home/me\n```\n'
    )
    follow_page(page)
    page.write_text(page.read_text().replace("pwd", "false"))
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        follow_page(page)
