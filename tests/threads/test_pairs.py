"""Every public operation beside every other, in two threads: on separate models and on one.

`DORMANT_PAIR_ROUNDS=200` meets more interleavings than the few rounds of an ordinary run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from operations import pairs

ROUNDS = int(os.environ.get("DORMANT_PAIR_ROUNDS", "2"))

# Nothing here takes long: a pair that is not done by then hangs.
SECONDS = 60 + ROUNDS

# Those of which the thread sanitizer sees every pair; it makes everything much slower.
CENTRAL = (
    "build",
    "load",
    "save",
    "materialize",
    "materialize parts",
    "deepcopy",
    "pickle",
    "open_checkpoint",
    "forward",
    "open formats",
    "load fp8",
)


class Host:
    """The process that runs the pairs, a new one after each that a pair has ended."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._process: subprocess.Popen[str] | None = None

    def run(self, first: str, second: str, *, shared: bool) -> str:
        """Empty, or what went wrong."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        request = {
            "names": [first, second],
            "shared": shared,
            "rounds": ROUNDS,
            "seconds": SECONDS,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if answer:
            return str(json.loads(answer))
        self.stop()
        return f"the process ended with {process.returncode}\n{self._errors.read_text()[-20000:]}"

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with self._errors.open("w") as errors:
            return subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("pair_host.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # By posix_spawn: the thread sanitizer lets no fork of a process with threads go on.
                close_fds=False,
            )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    started = Host(tmp_path_factory.mktemp("pairs") / "stderr.txt")
    yield started
    started.stop()


PAIRS = [
    pytest.param(
        first,
        second,
        id=f"{first}-{second}",
        marks=pytest.mark.threads if first in CENTRAL and second in CENTRAL else (),
    )
    for first, second in pairs()
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_on_separate_models_each_gives_what_it_gives_alone(
    host: Host, first: str, second: str
) -> None:
    problem = host.run(first, second, shared=False)
    assert not problem, problem


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_on_one_model_every_tensor_stays_whole(host: Host, first: str, second: str) -> None:
    problem = host.run(first, second, shared=True)
    assert not problem, problem
