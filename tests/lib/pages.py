"""The code in README.md and docs/, which the tests run from the page itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCED = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^## ([^\n]+)\n", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: its file.
        line: the line before its first one, counted from 1.
        title: what follows the language on the fence, as ` title="sharded.py"`.
        heading: the `##` heading above it; "" where there is none.
        code: the text.
    """

    page: Path
    line: int
    title: str
    heading: str
    code: str

    def run(self, names: dict[str, Any], changes: Mapping[str, str] | None = None) -> None:
        """Executes it in `names`; errors show the page and its lines.

        Args:
            names: the variables, which it changes.
            changes: text of the page to be replaced before, each of which must occur once.
        """
        code = self.code
        for old, new in (changes or {}).items():
            assert code.count(old) == 1, f"{self.page}: {old!r} occurs {code.count(old)} times"
            code = code.replace(old, new)
        exec(compile("\n" * self.line + code, str(self.page), "exec"), names)


def blocks(page: str | Path, language: str = "python") -> list[Block]:
    """The blocks of a page in one language.

    Args:
        page: a path, or the name of a page in docs/.
        language: what the fence says.
    """
    path = DOCS / page  # a whole path stays one
    text = path.read_text()
    headings = [(found.start(), found[1]) for found in _HEADING.finditer(text)]
    return [
        Block(
            page=path,
            line=text[: found.start()].count("\n") + 1,
            title=found[2].strip(),
            heading=next((name for at, name in headings[::-1] if at < found.start()), ""),
            code=found[3],
        )
        for found in _FENCED.finditer(text)
        if found[1] == language
    ]


def run_page(page: str | Path, **names: Any) -> dict[str, Any]:
    """Runs all Python code of a page, one block after the other, and returns what it left."""
    found = blocks(page)
    assert found, f"{page} has no code"
    for block in found:
        block.run(names)
    return names
