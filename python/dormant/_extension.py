"""The compiled extension: which torch it fits, and where its CMake package lies."""

from __future__ import annotations

import re
from pathlib import Path

# torch comes first: importing it loads the libraries that the extension links to.
import torch


def check_torch() -> None:
    """Checks that the running torch is the one the extension was compiled against.

    Raises:
        ImportError: it is another release, or the extension was never built.
    """
    try:
        from dormant._build_info import TORCH_VERSION
    except ModuleNotFoundError as error:
        raise ImportError(
            "dormant: the compiled extension is missing (no dormant/_build_info.py). Build it: run "
            "`make build` in the checkout and use its .venv, or `pip install .`."
        ) from error
    built, running = _release(TORCH_VERSION), _release(torch.__version__)
    if built != running:
        raise ImportError(
            f"dormant: built for torch {built}, running torch {running}. The extension uses "
            "PyTorch's C++ interface, which changes with every release. Install "
            f"torch=={built}, or rebuild dormant with torch {running} in the environment: "
            "`pip install --no-build-isolation --force-reinstall --no-deps .` in its checkout."
        )


def cmake_prefix() -> str:
    """The directory that holds share/cmake/dormant for `find_package(dormant)`."""
    return str(Path(__file__).parent)


def _release(version: str) -> str:
    """'2.13.0+cpu' and '2.13.0' are the same release; so are nightlies of one number."""
    found = re.match(r"\d+\.\d+\.\d+", version)
    return found.group() if found else version
