"""GGUF files: values by key, and tensors, most of them in blocks of ggml.

The header is read in C++ (csrc/checkpoint/gguf.h), the blocks are decoded there
(csrc/decode/gguf_blocks.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, overload

from dormant._extension import _C
from dormant.checkpoint.entry import (
    Checksum,
    Contents,
    Entry,
    StoredTensor,
    contiguous_strides,
    place_of,
)
from dormant.checkpoint.gguf_names import GgufNames

MAGIC = b"GGUF"
_SHOWN = 4  # elements of an array in its repr


class StoredArray(Sequence[Any]):
    """An array in the metadata of a GGUF file, read when its elements are first accessed.

    The arrays of a vocabulary have hundreds of thousands of elements that are rarely needed.
    """

    def __init__(self, stored: _C.GgufArray) -> None:
        self._stored = stored

    @cached_property
    def _values(self) -> list[Any]:
        return self._stored.values()

    def __len__(self) -> int:
        return len(self._stored)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        """An element, or a list of those in a slice."""
        return self._values[place]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has equal elements."""
        if isinstance(other, (StoredArray, list, tuple)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The first elements."""
        shown = ", ".join(repr(value) for value in self._values[:_SHOWN])
        return f"[{shown}, ... {len(self)} elements]" if len(self) > _SHOWN else f"[{shown}]"


def read_gguf(file: _C.File) -> Contents:
    """The contents of a GGUF file; packed tensors are shown as bytes, one row of blocks per row.

    Raises:
        ValueError: the file is damaged, or contradicts itself.
        NotImplementedError: it has version 1, or was written by a big-endian machine.
        OSError: the system cannot read it.
    """
    entries, values = _C.gguf_entries(file)
    path = place_of(file)
    tensors: dict[str, StoredTensor] = {}
    for name, dtype, shape, offset, nbytes, encoding in entries:
        tensors[name] = StoredTensor(
            entry=Entry(dtype, shape, nbytes, path, offset, encoding=encoding),
            storage=file.storage(dtype, offset, nbytes),
            storage_offset=0,
            strides=contiguous_strides(shape),
        )
    metadata = {
        key: StoredArray(value) if isinstance(value, _C.GgufArray) else value
        for key, value in values.items()
    }
    return Contents(
        file=file,
        tensors=tensors,
        checksums=[Checksum("the file", 0, file.size, None)],
        metadata=metadata,
        naming=GgufNames(metadata),
    )


def check_split(contents: Sequence[Contents]) -> None:
    """Raises ValueError unless the files are all parts of one split file, in order."""
    for number, content in enumerate(contents):
        got = content.metadata.get("split.no"), content.metadata.get("split.count")
        if got != (number, len(contents)):
            raise ValueError(
                f"open_checkpoint: {content.file.path}: split.no and split.count are {got[0]} and "
                f"{got[1]}, expected {number} and {len(contents)} from the names of the files. "
                "Check that they belong to one split file, or get them again."
            )
    count = contents[0].metadata.get("split.tensors.count")
    found = sum(len(content.tensors) for content in contents)
    if count is not None and count != found:
        raise ValueError(
            f"open_checkpoint: {contents[0].file.path}: split.tensors.count is {count}, and the "
            f"{len(contents)} files have {found} tensors. Check that they belong to one split "
            "file, or get them again."
        )
