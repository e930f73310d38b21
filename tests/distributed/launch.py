"""Functions on several ranks over gloo, with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch


class RunRanks(Protocol):
    """Runs a job of jobs/ on `world` ranks and returns what each rank returned."""

    def __call__(
        self, world: int, job: str, *, seconds: float = 60, **arguments: Any
    ) -> list[Any]: ...


class RankHost:
    """The process that forks the ranks; started at first use, and again should it have died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def _request(self, line: str) -> list[int]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("rank_host.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the host of the ranks died, exit code {self._process.wait()}"
        return list(json.loads(answer))

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def run(
        self, folder: Path, world: int, job: str, seconds: float, arguments: dict[str, Any]
    ) -> list[Any]:
        """Runs one job in an empty folder; the test fails with all ranks' logs if one does."""
        request = {
            "folder": str(folder),
            "world": world,
            "job": job,
            "arguments": arguments,
            "seconds": seconds,
        }
        codes = self._request(json.dumps(request))
        if any(codes):
            logs = [
                f"--- rank {rank}, exit code {code}\n" + (folder / f"rank{rank}.log").read_text()
                for rank, code in enumerate(codes)
            ]
            pytest.fail(f"{job} {arguments} on {world} ranks:\n" + "\n".join(logs), pytrace=False)
        return [torch.load(folder / f"rank{rank}.result") for rank in range(world)]


def check_others_after_a_kill(job: str, world: int, folder: Path, *arguments: str) -> None:
    """Runs `jobs.JOB` as programs of which rank 1 kills itself; the others raise within seconds.

    Args:
        job: the module, whose `main` ends in `killed.run`.
        world: the number of ranks.
        folder: where they meet; empty.
        arguments: of the job.
    """
    here = Path(__file__).parent
    folders = [str(here), str(here.parent / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", str(rank), str(world), str(folder), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        )
        for rank in range(world)
    ]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate(timeout=120)
        if rank == 1:
            assert process.returncode < 0
            continue
        assert process.returncode == 0
        assert "a rank of the process group is gone" in output
        assert output.endswith("lazy: True\n")
        assert float(output.split(" s: ")[0]) < 15
