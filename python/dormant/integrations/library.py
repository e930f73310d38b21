"""What every integration does: import its library, find a folder, bring the result to life."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path
from typing import Any

import torch

from dormant.materialization.api import bring_to_life
from dormant.materialization.options import MaterializeOptions
from dormant.tensors.conversion import convert_dtype


def imported(module: str) -> Any:
    """A module of another library.

    Raises:
        ImportError: the library is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(
            f"dormant.integrations.{library}: the library {library} is not installed. Install it "
            f"with: pip install {library}",
            name=library,
        ) from error


def check_folder(folder: str | os.PathLike[str], operation: str) -> None:
    """Raises OSError unless there is such a folder: a name must not lead to a download."""
    if not Path(folder).is_dir():
        exists = Path(folder).exists()
        raise OSError(
            errno.ENOTDIR if exists else errno.ENOENT,
            f"dormant: {operation}: {'a file' if exists else 'nothing'} lies at "
            f"{os.fspath(folder)!r}, expected a folder on this machine. Nothing is downloaded "
            "here; get the model first",
        )


def finish(
    model: torch.nn.Module,
    options: MaterializeOptions,
    *,
    materialize: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Brings what is lazy in `model` to life, where it is wanted."""
    if materialize:
        bring_to_life([("", model)], options, dtype=dtype)
    elif dtype is not None:
        convert_dtype([("", model)], dtype)
