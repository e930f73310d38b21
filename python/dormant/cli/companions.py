"""The small files beside a checkpoint's weights: configurations, tokenizers, code of the model."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dormant.checkpoint import stores
from dormant.checkpoint.files import Place, is_index
from dormant.checkpoint.url import Url, is_url
from dormant.publication.publication import Publication

_ENDINGS = {".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".md"}
_MOST_BYTES = 1 << 28
_CONFIG = "config.json"
# Names that are tried if a folder cannot be listed.
_USUAL = (
    _CONFIG,
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def folders_of(paths: Iterable[str]) -> list[Place]:
    """The folders among the paths of a checkpoint, and the folders of the indices among them."""
    folders: list[Place] = []
    for text in paths:
        place: Place = Url(text) if is_url(text) else Path(text)
        if is_index(place.name):
            folders.append(place.parent)
        elif place.is_dir() if isinstance(place, Path) else stores.is_folder(place):
            folders.append(place)
    return folders


def find_companions(folders: Iterable[Place]) -> dict[str, Place]:
    """Files to copy, by name; the first if several have the same name."""
    found: dict[str, Place] = {}
    for folder in folders:
        for name in _names_in(folder):
            if Path(name).suffix in _ENDINGS and not is_index(name):
                found.setdefault(name, folder / name)
    return found


def _names_in(folder: Place) -> list[str]:
    if isinstance(folder, Path):
        files = (path for path in folder.iterdir() if path.is_file())
        return sorted(path.name for path in files if path.stat().st_size <= _MOST_BYTES)
    names = stores.names_at(folder)
    if names is None:  # a folder that cannot be listed
        return [name for name in _USUAL if stores.exists(folder / name)]
    return names


def _read(place: Place) -> bytes:
    """The contents of a small file.

    Raises:
        OSError: it cannot be read, or is too large.
    """
    if isinstance(place, Path):
        return place.read_bytes()
    file = stores.open_url(place).file()
    if file.size > _MOST_BYTES:
        raise OSError(
            errno.EFBIG, f"dormant: {place} has {file.size} bytes, expected at most {_MOST_BYTES}"
        )
    return file.read(0, file.size)


def copy_companions(
    companions: dict[str, Place],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    decoded: bool = False,
) -> list[str]:
    """Copies the files, and returns their names.

    Args:
        companions: files by name.
        folder: the destination.
        dtype: the dtype that the weights were cast to, which transformers reads from config.json.
        decoded: whether the weights are no longer encoded as config.json says.
    """
    with Publication(folder) as publication:
        for name, path in companions.items():
            data = _read(path)
            if name == _CONFIG and (dtype is not None or decoded):
                data = _changed(data, dtype, decoded)
            with (
                publication.create(name) as descriptor,
                os.fdopen(os.dup(descriptor), "wb") as file,
            ):
                file.write(data)
        publication.publish()
    return list(companions)


def configuration(folders: Iterable[Place]) -> dict[str, Any]:
    """The contents of config.json; empty if there is none or it is not a JSON object."""
    for folder in folders:
        path = folder / _CONFIG
        if path.is_file() if isinstance(path, Path) else stores.exists(path):
            try:
                read = json.loads(_read(path))
            except (ValueError, RecursionError):
                return {}
            return read if isinstance(read, dict) else {}
    return {}


def _changed(config: bytes, dtype: torch.dtype | None, decoded: bool) -> bytes:
    try:
        read = json.loads(config)
    except (ValueError, RecursionError):
        return config
    if not isinstance(read, dict):
        return config
    if dtype is not None:
        _replace_dtypes(read, str(dtype).removeprefix("torch."))
    if decoded:
        forget_quantization(read)
    return (json.dumps(read, indent=2) + "\n").encode()


def forget_quantization(config: dict[str, Any]) -> None:
    """Removes the entries that say that the weights of the model or its parts are encoded."""
    for key in ("quantization_config", "compression_config"):
        config.pop(key, None)
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            forget_quantization(value)


def _replace_dtypes(config: dict[str, Any], dtype: str) -> None:
    """Parts of a model have their own dtypes; transformers before version 5 uses "torch_dtype"."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            config[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _replace_dtypes(value, dtype)
