from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import Cli

import dormant.cli.measurements
from dormant.cli.measurements import CHECKPOINT, MEASUREMENTS, Job, run_job, write_checkpoint


def test_runs_are_timed_in_processes_of_their_own(cli: Cli, tmp_path: Path) -> None:
    arguments = ("--size", "tiny", "--repeat", "1", "--folder", tmp_path, "--json")
    run = cli("bench", "load", *arguments)
    assert run.code == 0
    (result,) = run.json["results"]
    assert result["equal"] is True
    assert result["ways"].keys() == {"eager", "dormant, mapped", "dormant, copied"}
    for way in result["ways"]:
        assert len(result["ways"][way]["seconds"]) == 1
        assert result["ways"][way]["median_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parameters = write_checkpoint(Job("load", "eager", "tiny", tmp_path, None))
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert parameters == sum(tensor.numel() for tensor in saved.values())
    return tmp_path


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_ways_give_equal_outputs(folder: Path, name: str) -> None:
    digests = [
        run_job(Job(name, way, "tiny", folder, None)).digest for way in MEASUREMENTS[name].ways
    ]
    assert len(digests) >= 2
    assert len(set(digests)) == 1
    assert (digests[0] is None) == (name == "construct")


def test_outputs_that_differ_are_exit_code_1(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(function: object, job: Job) -> object:
        if function is write_checkpoint:
            return write_checkpoint(job)
        if job.way == "dormant":
            monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
        return run_job(job)

    monkeypatch.setattr(dormant.cli.bench, "_in_new_process", here)
    run = cli("bench", "materialize", "--size", "tiny", "--repeat", "1")
    assert run.code == 1
    assert "DIFFER" in run.out
