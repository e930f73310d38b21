"""The C++ side of an installed dormant: its CMake package, its headers, the example program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dormant

ROOT = Path(__file__).resolve().parent.parent
CMAKE = Path(sys.executable).with_name("cmake")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def configure(source: Path, build: Path, prefixes: str) -> subprocess.CompletedProcess[str]:
    ninja = f"-DCMAKE_MAKE_PROGRAM={CMAKE.with_name('ninja')}"
    return run(
        CMAKE, "-G", "Ninja", ninja, "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefixes}",
        cwd=source,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prefixes() -> str:
    return f"{dormant.cmake_prefix_path};{torch.utils.cmake_prefix_path}"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, prefixes: str) -> Path:
    """The example programs, built against the installed package."""
    build = tmp_path_factory.mktemp("examples")
    configured = configure(ROOT / "examples" / "cpp", build, prefixes)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run(CMAKE, "--build", ".", cwd=build)
    assert built.returncode == 0, built.stdout + built.stderr
    return build


@pytest.mark.timeout(900)
def test_example_program_equals_eager_construction(examples: Path) -> None:
    ran = run(examples / "lazy_transformer", cwd=examples)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "equal to eager construction, bit for bit: 25 parameters" in ran.stdout


@pytest.mark.timeout(900)
def test_loaded_checkpoint_equals_eager_construction_and_copy(
    examples: Path, tmp_path: Path
) -> None:
    ran = run(examples / "load_checkpoint", tmp_path, cwd=examples)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # torch::tensor, which makes num_batches_tracked, is real at once, as it is in Python.
    assert "loaded 2, initialised 6, kept 1: equal to eager construction and copy_" in ran.stdout


def test_library_hides_what_is_not_marked_for_export() -> None:
    library = Path(dormant.__file__).parent / "lib" / "libdormant.so"
    symbols = run("nm", "--dynamic", "--defined-only", "--demangle", library, cwd=ROOT).stdout
    assert " dormant::materialize(" in symbols
    # Internals without DORMANT_API, and a header-only library that another one may bring too.
    assert " dormant::random::advance(" not in symbols
    assert "nlohmann::" not in symbols


def test_package_of_another_torch_is_refused(tmp_path: Path, prefixes: str) -> None:
    package = tmp_path / "dormant" / "share" / "cmake" / "dormant"
    package.mkdir(parents=True)
    installed = Path(dormant.__file__).parent / "share" / "cmake" / "dormant"
    config = (installed / "dormantConfig.cmake").read_text()
    built_for = f'dormant_TORCH_VERSION "{torch.__version__.split("+")[0]}"'
    assert built_for in config
    changed = config.replace(built_for, 'dormant_TORCH_VERSION "2.99.0"')
    (package / "dormantConfig.cmake").write_text(changed)
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\n"
        "project(consumer LANGUAGES CXX)\n"
        "find_package(dormant REQUIRED)\n"
    )
    refused = configure(source, tmp_path / "build", f"{tmp_path / 'dormant'};{prefixes}")
    assert refused.returncode != 0
    assert "was built for torch 2.99.0" in refused.stderr.replace("\n", " ").replace("  ", " ")
