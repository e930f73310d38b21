"""The compiled extension: which build of it fits, and where its CMake package lies."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path

# torch comes first: importing it loads the libraries that the extension links to.
import torch

__all__ = ["_C", "cmake_prefix", "load_extension"]

_PACKAGE = Path(__file__).parent


def load_extension(builds: Path = _PACKAGE / "_builds") -> None:
    """Makes `dormant._C` the extension that was built for the running torch and Python.

    Args:
        builds: a folder for each release of torch, named after it.

    Raises:
        ImportError: there is none for them, or none at all.
    """
    name = "dormant._C"
    running = _release(torch.__version__)
    files = {
        folder.name: [folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
        for folder in builds.glob("*")
        if any(folder.glob("_C.*"))
    }
    if not files:
        raise ImportError(
            f"dormant: the compiled extension is missing (nothing in {builds}). Build it: run "
            "`make build` in the checkout and use its .venv, or `pip install .`."
        )
    rebuild = "`pip install --no-build-isolation --force-reinstall --no-deps .` in its checkout"
    if running not in files:
        built = sorted(files, key=lambda release: [int(part) for part in release.split(".")])
        raise ImportError(
            f"dormant: built for torch {', '.join(built)}, running torch {running}. The extension "
            "uses PyTorch's C++ interface, which changes with every release. Install "
            f"torch=={built[-1]}, or rebuild dormant with torch {running} in the environment "
            f"(2.11 to 2.15 are supported): {rebuild}."
        )
    path = next((file for file in files[running] if file.exists()), None)
    if path is None:
        raise ImportError(
            f"dormant: built for another Python than {sys.version.split()[0]} (none of "
            f"{', '.join(file.name for file in files[running])} is in {builds / running}). "
            f"Install dormant with this Python, or rebuild it: {rebuild}."
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    vars(sys.modules["dormant"])["_C"] = module  # as an import statement would


def cmake_prefix() -> str:
    """The directory that holds share/cmake/dormant for `find_package(dormant)`."""
    return str(_PACKAGE)


def _release(version: str) -> str:
    """'2.13.0+cpu' and '2.13.0' are the same release; so are nightlies of one number."""
    found = re.match(r"\d+\.\d+\.\d+", version)
    return found.group() if found else version


load_extension()

import dormant._C as _C  # noqa: E402
