"""The wheel, installed into an environment that has torch and not this checkout."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import dormant
from dormant import integrations, tensor_parallel

ROOT = Path(__file__).resolve().parent.parent
# What CMake installs beside the Python sources, as in a wheel.
COMPILED = ("_builds", "include", "share")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Without PYTHONPATH, which would let this checkout through.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of everything but what is compiled, which takes minutes."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index",
        "--disable-pip-version-check", "--config-settings", "wheel.cmake=false",
        "--config-settings", f"build-dir={folder / 'build'}", "--wheel-dir", folder, ROOT,
        cwd=folder,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel in it, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    installed = run(
        sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index",
        "--disable-pip-version-check", wheel,
        cwd=folder,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    here = Path(dormant.__file__).parent
    for pattern in COMPILED:
        for path in here.glob(pattern):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, site / "dormant" / path.name)
    # Files that extend the path count only in an environment's own folder: not our editable one.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)))
    return interpreter


def test_wheel_has_all_python_sources_and_types(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "python"
    sources = {
        str(path.relative_to(package))
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in package.rglob(pattern)
    }
    assert packed == sources


def test_wheel_names_its_extras_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(about).decode())
    assert metadata.get_all("Provides-Extra") == ["transformers", "quantize", "plots"]
    required = {text.split(";")[0] for text in metadata.get_all("Requires-Dist") or ()}
    assert {"transformers>=5", "bitsandbytes>=0.50", "matplotlib>=3.9"} <= required
    scripts = archive.read(about.replace("METADATA", "entry_points.txt")).decode()
    assert "dormant = dormant_command.main:main" in scripts


def test_source_distribution_has_all_sources_and_nothing_built(tmp_path: Path) -> None:
    listed = run("git", "ls-files", cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    program = (
        "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    )
    built = run(sys.executable, "-c", program, tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = tmp_path.glob("dormant-*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    sources = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    wanted = {name for name in sources if not name.startswith((".ci/", ".github/"))}
    assert wanted - packed == set()
    built_names = (".so", ".o", ".pyc", "CMakeCache.txt")
    assert [name for name in packed if name.endswith(built_names)] == []


def test_installed_package_works_and_imports_no_optional_library(python: Path) -> None:
    program = """if True:
        import sys, torch, dormant, dormant.cli.main
        torch.manual_seed(0)
        with dormant.lazy_init():
            lazy = torch.nn.Linear(20, 30)
        dormant.materialize(lazy)
        torch.manual_seed(0)
        assert torch.equal(lazy.weight, torch.nn.Linear(20, 30).weight)
        optional = {"transformers", "bitsandbytes", "matplotlib", "peft", "accelerate", "rich"}
        print(dormant.__file__, sorted(optional & sys.modules.keys()))
    """
    ran = run(python, "-c", program, cwd=python.parent)
    assert ran.returncode == 0, ran.stderr
    file, optional = ran.stdout.split()
    assert Path(file).is_relative_to(python.parent.parent)
    assert optional == "[]"


def test_installed_command_runs(python: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "model.pt")
    ran = run(python.with_name("dormant"), "verify", "model.pt", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("ok      model.pt")


def test_the_typed_program_has_every_public_name() -> None:
    program = Path(__file__).with_name("typed_program.py").read_text()
    public = {*dormant.__all__, "safe_globals", *tensor_parallel.__all__, *integrations.__all__}
    for name in integrations.__all__:
        source = (ROOT / "python" / "dormant" / "integrations" / f"{name}.py").read_text()
        public |= set(re.findall(r"^(?:def|class) ([a-z]\w+)", source, re.MULTILINE))
    # Kinds of rules, which a user meets as values or in annotations of functions of their own.
    public -= {"COLUMN", "EMBEDDING", "VOCABULARY", "Replicated", "Reshape", "Rule"}
    assert [name for name in sorted(public) if not re.search(rf"\b{name}\b", program)] == []


def test_types_are_right_from_a_users_point_of_view(python: Path, tmp_path: Path) -> None:
    # What mypy learns about torch takes it 20 s; it is kept with what `make lint` keeps.
    shutil.copy(Path(__file__).with_name("typed_program.py"), tmp_path)
    checked = run(
        sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--config-file=",
        "--python-executable", python, "--cache-dir", ROOT / ".mypy_cache" / "user",
        "typed_program.py",
        cwd=tmp_path,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def pins() -> list[Requirement]:
    lines = [
        line
        for path in sorted((ROOT / "requirements").glob("*.txt"))
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    parsed = [Requirement(line) for line in lines]
    return [pin for pin in parsed if pin.marker is None or pin.marker.evaluate()]


def test_pinned_versions_run_on_the_first_release_of_this_python() -> None:
    # A system's Python is often an early one: Debian 12 has 3.11.2.
    first = f"{sys.version_info.major}.{sys.version_info.minor}.0"
    refuse = {}
    for pin in pins():
        about = importlib.metadata.metadata(pin.name)
        if not SpecifierSet(about["Requires-Python"] or "").contains(first):
            refuse[pin.name] = about["Requires-Python"]
    assert len(pins()) > 90
    assert refuse == {}


def test_the_supported_releases_of_torch_are_the_same_everywhere() -> None:
    (required,) = re.findall(r'"(torch>=[^"]*)"', (ROOT / "pyproject.toml").read_text())
    supported = Requirement(required).specifier
    minors = [minor for minor in range(100) if supported.contains(f"2.{minor}.0")]
    claim = f"2.{minors[0]} to 2.{minors[-1]}"
    for name in (
        "README.md",
        "cmake/TorchFromPython.cmake",
        "docs/installation.md",
        "docs/limits.md",
        "python/dormant/_extension.py",
    ):
        claims = re.findall(r"2\.\d+ to 2\.\d+", (ROOT / name).read_text())
        assert set(claims) == {claim}, name
    (built,) = re.findall(r"^WHEEL_TORCH := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {f"2.{minor}" for minor in minors} == {
        release.rpartition(".")[0] for release in built.split()
    }
