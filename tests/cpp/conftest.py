"""The program of this folder, built against the installed package; lets tests import encoders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dormant

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "decode"))

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def build(source: Path, folder: Path) -> Path:
    """The programs of a CMake project that finds dormant, built; returns their folder."""
    cmake = Path(sys.executable).with_name("cmake")
    prefixes = f"{dormant.cmake_prefix_path};{torch.utils.cmake_prefix_path}"
    for command in (
        (
            *("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={cmake.with_name('ninja')}"),
            *("-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefixes}"),
        ),
        ("--build", folder),
    ):
        ran = subprocess.run([cmake, *command], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="session")
def public_api(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the program; where it must fail, `status=1`."""
    program = build(HERE, tmp_path_factory.mktemp("public_api")) / "public_api"

    def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran

    return run
