"""The wheel that `make wheel` makes, here of what this checkout's build has installed."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename

import dormant

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import build_wheel  # noqa: E402
from torch_requirement import requirement  # noqa: E402

THIS_PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
THIS_TORCH = torch.__version__.partition("+")[0]
OTHER_TORCH = "2.14.1" if THIS_TORCH != "2.14.1" else "2.13.0"
SOURCES = Path(dormant.__file__).parent
# Every release there could be near those that are supported.
RELEASES = [f"2.{minor}.{patch}" for minor in range(5, 25) for patch in range(5)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What CMake installed for this torch, and as if for another one, too."""
    folder = tmp_path_factory.mktemp("package")
    for name in build_wheel.COMPILED:
        shutil.copytree(SOURCES / name, folder / name)
    shutil.copytree(
        folder / "_builds" / THIS_TORCH, folder / "_builds" / OTHER_TORCH, dirs_exist_ok=True
    )
    return folder


@pytest.fixture(scope="module")
def wheel(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel.pack(package, THIS_PYTHON, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def about(unpacked: Path, file: str) -> Message:
    (path,) = unpacked.glob(f"*.dist-info/{file}")
    return Parser().parsestr(path.read_text())


def allowed(requirements: list[str]) -> list[str]:
    """Those of RELEASES that all requirements for torch allow."""
    parsed = [Requirement(text) for text in requirements]
    torches = [wanted.specifier for wanted in parsed if wanted.name == "torch"]
    assert torches != []
    return [release for release in RELEASES if all(release in wanted for wanted in torches)]


def test_name_and_tags_say_what_it_is_for(wheel: Path, unpacked: Path) -> None:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert (name, str(version)) == ("dormant", about(unpacked, "METADATA")["Version"])
    written = about(unpacked, "WHEEL").get_all("Tag") or []
    assert sorted(written) == sorted(map(str, tags))
    for tag in tags:
        assert (tag.interpreter, tag.abi) == (THIS_PYTHON, THIS_PYTHON)
        assert tag.platform.startswith("manylinux_2_")
        assert tag.platform.endswith(f"_{os.uname().machine}")
    assert about(unpacked, "WHEEL")["Root-Is-Purelib"] == "false"


def test_record_has_every_file_with_its_hash(unpacked: Path) -> None:
    (record,) = unpacked.glob("*.dist-info/RECORD")
    lines = {name: (hashed, size) for name, hashed, size in csv.reader(record.open())}
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert lines.keys() == files
    assert lines.pop(str(record.relative_to(unpacked))) == ("", "")
    for name, (hashed, size) in lines.items():
        data = (unpacked / name).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (hashed, int(size)) == (f"sha256={digest}", len(data)), name


def test_holds_the_sources_and_what_cmake_installed(package: Path, unpacked: Path) -> None:
    sources = {
        path.relative_to(SOURCES)
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in SOURCES.rglob(pattern)
    }
    installed = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    held = unpacked / "dormant"
    packed = {path.relative_to(held) for path in held.rglob("*") if path.is_file()}
    assert packed == sources | installed
    assert {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")} == {
        "dormant",
        "dormant_command",
    }


def test_libraries_are_stripped_and_find_torch_beside_them(unpacked: Path) -> None:
    libraries = list(unpacked.rglob("*.so*"))
    assert {path.parent.name for path in libraries} >= {THIS_TORCH, OTHER_TORCH}
    assert {path.name.partition(".")[0] for path in libraries} == {"libdormant", "_C"}
    for path in libraries:
        with path.open("rb") as file:
            elf = ELFFile(file)
            sections = {section.name for section in elf.iter_sections()}
            assert not {name for name in sections if name.startswith((".symtab", ".debug"))}
            (dynamic,) = (part for part in elf.iter_sections() if isinstance(part, DynamicSection))
            needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
            (runpath,) = (tag.runpath for tag in dynamic.iter_tags("DT_RUNPATH"))
        assert {"libtorch_cpu.so", "libc10.so"} <= needed
        assert [name for name in needed if "/" in name] == []
        assert "$ORIGIN/../../../torch/lib" in runpath.split(":")
        assert all(part.startswith("$ORIGIN") for part in runpath.split(":"))


def test_metadata_allows_the_releases_inside_and_no_other(unpacked: Path) -> None:
    inside = {path.name for path in unpacked.glob("dormant/_builds/*")}
    assert inside >= {THIS_TORCH, OTHER_TORCH}
    assert set(allowed(about(unpacked, "METADATA").get_all("Requires-Dist") or [])) == inside


@pytest.mark.parametrize(
    "releases",
    [
        ["2.13.0"],
        ["2.14.0", "2.14.1"],
        ["2.13.0", "2.14.0", "2.14.1", "2.15.0"],
        ["2.15.0", "2.9.1", "2.11.0", "2.14.1"],
        ["2.10.2", "2.12.0"],
    ],
    ids=" ".join,
)
def test_a_requirement_allows_the_named_releases_and_no_other(releases: list[str]) -> None:
    named = [release for release in RELEASES if release in releases]
    assert allowed([requirement(releases)]) == named
    specifiers = Requirement(requirement(releases)).specifier
    assert all(f"{release}+cu130" in specifiers for release in releases)


def test_a_build_requires_the_torch_it_is_compiled_for(tmp_path: Path) -> None:
    # What pip asks for before it builds, and compares with the wheel.
    program = (
        "import sys; from scikit_build_core import build; "
        "build.prepare_metadata_for_build_wheel(sys.argv[1])"
    )
    built = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, check=False)
    assert built.returncode == 0
    assert allowed(about(tmp_path, "METADATA").get_all("Requires-Dist") or []) == [THIS_TORCH]


def test_a_source_distribution_is_for_every_release(tmp_path: Path) -> None:
    sdist = build_wheel.source_distribution(tmp_path)
    with tarfile.open(sdist) as tar:
        information = tar.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert information is not None
        metadata = Parser().parsestr(information.read().decode())
    assert set(allowed(metadata.get_all("Requires-Dist") or [])) > {"2.13.0", "2.14.1", "2.15.0"}
    assert metadata.get_all("Dynamic") == ["Requires-Dist"]


def test_installs_with_its_dependencies_and_runs_in_another_folder(
    wheel: Path, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment" / "bin" / "python"
    (site,) = tmp_path.glob("environment/lib/python*/site-packages")
    # torch and rich count as installed. The editable dormant does not: such a file names its path.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)))

    def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pip", "--python", python, *arguments],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    installed = pip("install", "--no-index", "--no-deps", "--ignore-installed", wheel)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert [line for line in pip("check").stdout.splitlines() if line.startswith("dormant")] == []
    program = """if True:
        import dormant, torch
        from safetensors.torch import save_file
        torch.manual_seed(0)
        with dormant.lazy_init():
            lazy = torch.nn.Linear(20, 30)
        dormant.materialize(lazy)
        torch.manual_seed(0)
        eager = torch.nn.Linear(20, 30)
        assert torch.equal(lazy.weight, eager.weight)
        save_file(eager.state_dict(), "model.safetensors")
        with dormant.lazy_init():
            loaded = torch.nn.Linear(20, 30)
        dormant.load(loaded, "model.safetensors")
        assert torch.equal(loaded.bias, eager.bias)
        print(dormant._C.__file__)
    """
    ran = subprocess.run(
        [python, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).parent == site / "dormant" / "_builds" / THIS_TORCH


def test_the_running_python_is_found_by_its_version() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (python,) = build_wheel.find_pythons([version])
    assert build_wheel.tag(python) == THIS_PYTHON


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no CPython 3\.1 with its headers"):
        build_wheel.find_pythons(["3.1", sys.executable])


def test_a_release_is_left_out_for_a_python_that_it_does_not_support(tmp_path: Path) -> None:
    (python,) = build_wheel.find_pythons([sys.executable])
    for specifier in (">=3.10", ">=3.99"):
        (tmp_path / "METADATA").write_text(f"Name: torch\nRequires-Python: {specifier}\n\n")
        expected = python.version_str in SpecifierSet(specifier)
        assert build_wheel.supports(tmp_path, python) is expected


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_another_system_is_told_at_once_that_linux_is_needed(system: str, tmp_path: Path) -> None:
    configured = subprocess.run(
        [
            Path(sys.executable).with_name("cmake"), "-S", ROOT, "-B", tmp_path,
            f"-DCMAKE_SYSTEM_NAME={system}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert configured.returncode != 0
    assert f"this system is {system}, and only Linux is supported" in configured.stderr
