"""The code in README.md and docs/, which the tests run from the page itself.

What a block prints is shown below it on the page, in a block with the title "Output". Running a
block compares the two, so a page cannot show what its code no longer prints. `make docs-output`
runs the tests that run pages with DORMANT_REWRITE_OUTPUT=1, which rewrites the pages instead.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_SHOWN = '```text title="Output"\n'
_FENCED = re.compile(
    rf'^```(\w+)(?: title="(.*?)")?\n(.*?)^```\n(?:\n{_SHOWN}(.*?)^```\n)?',
    re.DOTALL | re.MULTILINE,
)
_HEADING = re.compile(r"^## ([^\n]+)\n", re.MULTILINE)
# What the pages show was printed with this release; another may record other operators.
_RELEASE = re.findall(r"^torch==(.*)$", (ROOT / "requirements" / "torch.txt").read_text(), re.M)
_FOLDER = "/home/me"  # where the pages say that they run
# What differs from run to run, or from processor to processor.
_VARYING = {
    r"[\d.]+ (?:s|ms|us)\b": "# s",
    r"[\d.]+ [KMG]i?B/s": "# B/s",
    r"peak memory [\d.]+ [KMG]?i?B": "peak memory # B",
    r"^random numbers: .*$": "random numbers: #",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: its file.
        line: the line before its first one, counted from 1.
        language: what the fence says.
        file: the file that the page asks the reader to put the block into, which is its title; ""
            if none.
        heading: the `##` heading above it; "" where there is none.
        code: the text.
        output: what the page says that it prints; "" where the page shows no output.
        source: the block and its output as they stand on the page.
    """

    page: Path
    line: int
    language: str
    file: str
    heading: str
    code: str
    output: str
    source: str

    def run(self, names: dict[str, Any], changes: Mapping[str, str] | None = None) -> None:
        """Executes it in `names`; errors show the page and its lines.

        Args:
            names: the variables, which it changes.
            changes: text of the page to be replaced before, each of which must occur once. What is
                printed is not compared then.

        Raises:
            AssertionError: the page does not show what the block prints.
        """
        code = self.code
        for old, new in (changes or {}).items():
            assert code.count(old) == 1, f"{self.page}: {old!r} occurs {code.count(old)} times"
            code = code.replace(old, new)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * self.line + code, str(self.page), "exec"), names)
        sys.stdout.write(printed.getvalue())
        if not changes:
            self.check_output(printed.getvalue())

    def run_in_shell(self, timeout: int = 600) -> None:
        """Executes its commands in the current folder, with the programs of this Python.

        Raises:
            AssertionError: a command fails, or the page does not show what they print.
        """
        programs = sysconfig.get_path("scripts")
        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{self.page}:{self.line}: {done.stderr[-3000:]}"
        self.check_output(done.stdout)

    def check_output(self, printed: str) -> None:
        """Compares what the block printed with what the page shows, or rewrites the page."""
        printed = printed.replace(str(Path.cwd()), _FOLDER)
        printed = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
        if torch.__version__.split("+")[0] not in _RELEASE or _masked(printed) == _masked(
            self.output
        ):
            return
        if os.environ.get("DORMANT_REWRITE_OUTPUT"):
            text = self.page.read_text()
            assert text.count(self.source) == 1, f"{self.page}: two equal blocks"
            alone = self.source.split(f"\n{_SHOWN}")[0]
            shown = f"{alone}\n{_SHOWN}{printed}```\n" if printed else alone
            self.page.write_text(text.replace(self.source, shown))
            return
        difference = difflib.unified_diff(
            _masked(self.output).splitlines(), _masked(printed).splitlines(), lineterm="", n=1
        )
        listed = "\n".join(list(difference)[2:])
        raise AssertionError(
            f"{self.page}:{self.line}: the block prints something else than the page shows; "
            f"make docs-output rewrites it:\n{listed}"
        )


def _masked(text: str) -> str:
    for pattern, name in _VARYING.items():
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text


def blocks(page: str | Path, *languages: str) -> list[Block]:
    """The blocks of a page in some languages.

    Args:
        page: a path, or the name of a page in docs/.
        languages: what the fences say; Python by default.
    """
    path = DOCS / page  # a whole path stays one
    text = path.read_text()
    headings = [(found.start(), found[1]) for found in _HEADING.finditer(text)]
    return [
        Block(
            page=path,
            line=text[: found.start()].count("\n") + 1,
            language=found[1],
            file=found[2] or "",
            heading=next((name for at, name in headings[::-1] if at < found.start()), ""),
            code=found[3],
            output=found[4] or "",
            source=found[0],
        )
        for found in _FENCED.finditer(text)
        if found[1] in (languages or ("python",))
    ]


def run_page(page: str | Path, **names: Any) -> dict[str, Any]:
    """Runs all Python code of a page, one block after the other, and returns what it left."""
    found = blocks(page)
    assert found, f"{page} has no code"
    for block in found:
        block.run(names)
    return names


def follow_page(page: str | Path, **names: Any) -> dict[str, Any]:
    """Does in the current folder what a reader of a page does, and returns the variables left.

    Python code runs in this process, a block with the name of a file is put into that file, and
    commands run in a shell.
    """
    for block in blocks(page, "python", "sh"):
        if block.file:
            Path(block.file).write_text(block.code)
        elif block.language == "sh":
            block.run_in_shell()
        else:
            block.run(names)
    return names
