"""The contents of a checkpoint file: tensors, described by the positions of their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from dormant._extension import _C
from dormant.checkpoint.pretrained import Naming
from dormant.checkpoint.url import Url


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint, as its files describe it.

    Attributes:
        dtype: its element type.
        shape: its sizes.
        nbytes: bytes of its elements.
        file: the file that holds it; for a URL, the URL without secrets as a string; None if the
            tensor is made from `parts`.
        offset: the position of its first element in `file`, in bytes; None if it has `parts`.
        strides: in elements, if it is not contiguous; else None.
        parts: the entries that it is made from, in order.
        encoding: how the parts encode it, such as "fp8 e4m3, blocks of 128x128"; for a tensor in
            one file, how the file's format encodes it; "" if it is plain.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    file: Path | str | None
    offset: int | None
    strides: tuple[int, ...] | None = None
    parts: tuple[Entry, ...] = ()
    encoding: str = ""


class Item(Protocol):
    """What a checkpoint keeps for a name: enough to create its tensor, but not the tensor."""

    @property
    def entry(self) -> Entry:
        """The description in the file."""

    def tensor(self) -> torch.Tensor:
        """A lazy tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor over a run of bytes of a file, which several tensors may share.

    Attributes:
        entry: what the file says about it.
        storage: the bytes.
        storage_offset: elements before its first one in `storage`.
        strides: in elements.
        conjugated: its values are the conjugates of what is stored.
        negated: its values are the negatives of what is stored.
    """

    entry: Entry
    storage: _C.FileStorage
    storage_offset: int
    strides: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False

    def tensor(self) -> torch.Tensor:
        """A lazy tensor; it shares its storage with others over the same bytes."""
        tensor = _C.view_as(
            self.storage.tensor(),
            self.entry.dtype,
            self.entry.shape,
            self.strides,
            self.storage_offset,
        )
        if self.conjugated:
            tensor = tensor.conj()
        return torch._neg_view(tensor) if self.negated else tensor


@dataclass(frozen=True)
class Checksum:
    """Bytes of a file with the CRC-32 that they should have; None where the file has none."""

    record: str
    offset: int
    nbytes: int
    crc: int | None


@dataclass(frozen=True)
class Contents:
    """Everything in one file.

    Attributes:
        file: the open file.
        tensors: by name, in the order of the file.
        checksums: every byte of tensors, in runs.
        metadata: what the file says about itself.
        versions: the `_metadata` of a module's state dict: versions by module name.
        extra: makes what is in the file beside the tensors.
        naming: how its names become those of a model, if the format has its own names.
        foreign: the classes and functions that it names and weights-only loading does not know.
        folder: the folder of its configuration, if that is at a URL.
    """

    file: _C.File
    tensors: dict[str, StoredTensor]
    checksums: list[Checksum]
    metadata: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] | None = None
    extra: Callable[[], dict[str, Any]] = dict
    naming: Naming | None = None
    foreign: tuple[str, ...] = ()
    folder: Url | None = None


def place_of(file: _C.File) -> Path | str:
    """The place of a file: a path, or the URL or name of a remote file."""
    return file.path if file.is_remote else Path(file.path)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, as PyTorch counts them."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)
