"""What a checkpoint file holds: tensors that are known by where their bytes lie."""

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
        file: the file that holds it; of a URL that, without secrets, as a string; None where it is
            put together from `parts`.
        offset: where its first element begins in `file`, in bytes; None where it has `parts`.
        strides: in elements, where it is not contiguous; else None.
        parts: the entries that it is put together from, in order.
        encoding: how the parts encode it, such as "fp8 e4m3, blocks of 128x128"; of one that is in
            a file, how that file's format says that it is encoded; "" where it is plain.
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
    """What a checkpoint keeps for a name: enough to make its tensor, but not the tensor."""

    @property
    def entry(self) -> Entry:
        """What the files say about it."""

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
        naming: how its names become a model's, where the format has names of its own.
        foreign: the classes and functions that it names and weights-only loading does not know.
        folder: where its configuration lies, if that is at a URL.
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
    """Where a file lies: a path, or the URL or name of a file elsewhere."""
    return file.path if file.is_remote else Path(file.path)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, as PyTorch counts them."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)
