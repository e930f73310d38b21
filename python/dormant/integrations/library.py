"""Shared by all integrations: importing the library, finding a folder, materializing the result."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dormant.materialization.api import bring_to_life
from dormant.materialization.options import MaterializeOptions
from dormant.ranks.together import Together
from dormant.tensors.conversion import convert_dtype
from dormant.tensors.names import NamesError, listed


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
            f"dormant.integrations.{library}: {library} is not installed. Install it: pip install "
            f"{library}",
            name=library,
        ) from error


def local_folder(
    name: str | os.PathLike[str],
    operation: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of a model: the given one, or that of a Hub name in the Hub's cache.

    Nothing is downloaded: the library looks up the name in the cache in the same way.

    Args:
        name: a folder, or a name of the Hub such as "org/model".
        operation: the name of the operation in messages.
        revision: the commit, branch or tag of the cached model.
        cache_dir: the cache, if it is not the default one of the Hub library.

    Raises:
        OSError: there is no such folder, and no cached model of that name.
    """
    if Path(name).is_dir():
        return Path(name)
    if not Path(name).exists():
        hub = imported("huggingface_hub")
        try:
            return Path(
                hub.snapshot_download(
                    os.fspath(name), revision=revision, cache_dir=cache_dir, local_files_only=True
                )
            )
        except (hub.errors.HFValidationError, hub.errors.LocalEntryNotFoundError):
            pass  # not a name, or not cached
    exists = Path(name).exists()
    raise OSError(
        errno.ENOTDIR if exists else errno.ENOENT,
        f"{operation}: {os.fspath(name)!r} is "
        f"{'a file' if exists else 'neither a folder nor a model in the cache of the Hub'}, "
        "expected a local folder or the name of a cached model. Nothing is downloaded; get the "
        "model first (hf download)",
    )


def is_ours(quantization_config: Any) -> bool:
    """Whether `dormant.quantize` handles it; configurations of other quantizers are not ours."""
    return (
        not hasattr(quantization_config, "quant_method")
        or type(quantization_config).__name__ == "BitsAndBytesConfig"
    )


def check_names(
    operation: str,
    path: str | os.PathLike[str],
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    advice: str,
) -> None:
    """Raises a KeyError that lists `missing` and `unexpected` keys, unless both are empty."""
    refused = listed("missing in the checkpoint", sorted(missing))
    refused += listed("not in the model", sorted(unexpected))
    if refused:
        raise NamesError(
            f"{operation}: the checkpoint in {os.fspath(path)} does not match the model.{refused}\n"
            f"{advice}"
        )


def finish(
    model: torch.nn.Module,
    options: MaterializeOptions,
    *,
    materialize: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Materializes `model` if `materialize` is true."""
    if materialize:
        bring_to_life([("", model)], options, Together("materialize", ()), dtype=dtype)
    elif dtype is not None:
        convert_dtype([("", model)], dtype)
