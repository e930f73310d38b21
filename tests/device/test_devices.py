"""Tensors on another device; jobs.py says what is checked, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fake_device

_JOBS_FILE = Path(__file__).with_name("jobs.py")
_JOBS = (
    "materialize",
    "nothing_stays_behind",
    "materialize_dtype",
    "materialize_values",
    "tensors_outside_of_modules",
    "large_tensors_are_never_whole_on_the_cpu",
    "load",
    "failures",
    "threads",
    "load_into_a_model_of_the_device",
    "refused_load_into_a_model_of_the_device",
    "converted_in_a_load",
    "saved_from_the_device",
    "faults",
    "recorded_on_the_cpu_only",
    "quantized",
    "quantized_load",
    "models_of_transformers",
)


def _run(device: str, job: str, **environment: str) -> None:
    command = [sys.executable, str(_JOBS_FILE), device, job]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_device.build(tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("job", _JOBS)
def test_on_a_simulated_device(job: str, library: Path) -> None:
    _run("hpu", job, **{fake_device.VARIABLE: str(library)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("job", _JOBS)
def test_on_a_gpu(job: str) -> None:
    _run("cuda", job)


def test_every_job_is_run() -> None:
    command = [sys.executable, str(_JOBS_FILE), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    assert tuple(listed.stdout.split()) == _JOBS


def test_the_check_for_machines_with_a_gpu_says_what_is_missing(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    script = Path(__file__).parents[2] / "tools" / "gpu_check.sh"
    done = subprocess.run([script, bare], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "missing: torch numpy safetensors nlohmann_json" in done.stderr
