"""The small files beside a checkpoint's weights: configurations, tokenizers, code of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dormant.checkpoint.files import is_index
from dormant.checkpoint.url import is_url
from dormant.publication.publication import Publication

_ENDINGS = {".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".md"}
_MOST_BYTES = 1 << 28
_CONFIG = "config.json"


def folders_of(paths: Iterable[str]) -> list[Path]:
    """The folders that a checkpoint was asked for by: themselves, or by the index in them.

    Only those of this machine: of URLs nothing but weights is read.
    """
    folders = []
    for path in (Path(path) for path in paths if not is_url(path)):
        if path.is_dir():
            folders.append(path)
        elif is_index(path.name):
            folders.append(path.parent)
    return folders


def find_companions(folders: Iterable[Path]) -> dict[str, Path]:
    """Files to copy, by name; of several with one name the first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if (
                path.suffix in _ENDINGS
                and not is_index(path.name)
                and path.is_file()
                and path.stat().st_size <= _MOST_BYTES
            ):
                found.setdefault(path.name, path)
    return found


def copy_companions(
    companions: dict[str, Path], folder: Path, *, dtype: torch.dtype | None = None
) -> list[str]:
    """Copies them, and returns their names.

    Args:
        companions: files by name.
        folder: where to.
        dtype: what the weights were cast to, which transformers reads in config.json.
    """
    with Publication(folder) as publication:
        for name, path in companions.items():
            data = path.read_bytes()
            if name == _CONFIG and dtype is not None:
                data = _with_dtype(data, dtype)
            with (
                publication.create(name) as descriptor,
                os.fdopen(os.dup(descriptor), "wb") as file,
            ):
                file.write(data)
        publication.publish()
    return list(companions)


def configuration(folders: Iterable[Path]) -> dict[str, Any]:
    """What config.json says; empty where there is none or it is no JSON object."""
    for folder in folders:
        path = folder / _CONFIG
        if path.is_file():
            try:
                read = json.loads(path.read_bytes())
            except ValueError:
                return {}
            return read if isinstance(read, dict) else {}
    return {}


def _with_dtype(config: bytes, dtype: torch.dtype) -> bytes:
    try:
        read = json.loads(config)
    except ValueError:
        return config
    if not isinstance(read, dict):
        return config
    _replace_dtypes(read, str(dtype).removeprefix("torch."))
    return (json.dumps(read, indent=2) + "\n").encode()


def _replace_dtypes(config: dict[str, Any], dtype: str) -> None:
    """Parts of a model have their own; versions of transformers before 5 write "torch_dtype"."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            config[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _replace_dtypes(value, dtype)
