"""Files as torch.save writes them, from lazy tensors, piece by piece.

The layout is that of PyTorch's caffe2/serialize/inline_container.h: a zip file without compression
whose record `data.pkl` refers to records `data/KEY` with the bytes of storages.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from dormant import _C
from dormant.materialize import bring_to_life

# Bytes of a tensor that come to life at a time; the piece before is still there then.
_PIECE = 16 << 20
# Records begin at multiples of this, so that torch.load(mmap=True) gives aligned tensors.
_ALIGNMENT = 64
_LOCAL_HEADER = 30
_ZIP64_FIELD = 20
_PADDING = b"FB"  # the tag that PyTorch gives the field with padding

Written = Callable[[int], None]


@dataclass(frozen=True)
class _Storage:
    """A record of elements; the pickle refers to it by a persistent id."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Tensor:
    """A contiguous tensor over the whole of a record."""

    storage: _Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (
            self.storage, 0, self.shape, self.strides, False, OrderedDict(),
        )  # fmt: skip


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = getattr(torch, _storage_types()[value.dtype])
        return ("storage", kind, value.key, "cpu", value.numel)


def write_torch_archive(
    state: Mapping[str, torch.Tensor], descriptor: int, written: Written
) -> None:
    """Writes a state dict as torch.save does.

    Each tensor is written contiguously; names of one tensor share their record. Lazy tensors stay
    lazy.

    Args:
        state: names to tensors on the CPU.
        descriptor: of an empty file, open for writing.
        written: called with the bytes of each piece that was written.

    Raises:
        NotImplementedError: dtypes that the layout has no storage type for, all of them listed.
        OSError: the system refused to write; with its errno.
    """
    unknown = [name for name, tensor in state.items() if tensor.dtype not in _storage_types()]
    if unknown:
        raise NotImplementedError(
            f"files of torch.save for {len(unknown)} tensors, such as {unknown[0]!r} of "
            f"{state[unknown[0]].dtype}, are not supported. Write safetensors, or pass --dtype."
        )
    records: dict[object, _Storage] = {}
    sources: list[tuple[_Storage, torch.Tensor]] = []
    pickled: dict[str, _Tensor] = {}
    for name, tensor in state.items():
        identity = geometry(tensor)
        if identity not in records:
            storage = _Storage(str(len(records)), tensor.dtype, tensor.numel())
            records[identity] = storage
            sources.append((storage, tensor))
        shape = tuple(tensor.shape)
        strides = torch.empty(shape, device="meta").stride()
        pickled[name] = _Tensor(records[identity], shape, strides)
    document = io.BytesIO()
    _Pickler(document, protocol=2).dump(pickled)
    with (
        os.fdopen(os.dup(descriptor), "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        _write(archive, file, "data.pkl", document.getvalue())
        _write(archive, file, "byteorder", b"little")
        for storage, tensor in sources:
            nbytes = tensor.numel() * tensor.element_size()
            with _record(archive, file, f"data/{storage.key}", nbytes) as record:
                for piece in _pieces(tensor):
                    record.write(piece)
                    written(len(piece))
        _write(archive, file, "version", b"3\n")


def geometry(tensor: torch.Tensor) -> object:
    """Equal for names of one tensor."""
    return (
        _C.storage_id(tensor),
        tensor.dtype,
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _storage_types() -> Mapping[torch.dtype, str]:
    types: dict[torch.dtype, str] = torch.storage._dtype_to_storage_type_map()
    return types


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    # On a lazy tensor the one that has nothing to resolve would bring it to life.
    if tensor.is_conj():
        tensor = tensor.resolve_conj()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    flat = tensor.detach().contiguous().reshape(-1)
    step = max(_PIECE // tensor.element_size(), 1)
    for begin in range(0, flat.numel(), step):
        # A copy: what is lazy comes to life for this piece only.
        piece = flat[begin : begin + step].clone()
        # Pages of a mapped file would stay resident until the last piece is written.
        bring_to_life([("", piece)], mmap="never", progress=False)
        yield piece.view(torch.uint8).numpy().data


def _write(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    with _record(archive, file, name, len(data)) as record:
        record.write(data)


def _record(archive: zipfile.ZipFile, file: BinaryIO, name: str, nbytes: int) -> Any:
    info = zipfile.ZipInfo(f"archive/{name}")
    # Sizes are not known to be below 4 GiB before they are written.
    zip64 = nbytes >= 1 << 31
    before = _LOCAL_HEADER + len(info.filename) + (_ZIP64_FIELD if zip64 else 0) + 4
    padding = -(file.tell() + before) % _ALIGNMENT
    info.extra = _PADDING + padding.to_bytes(2, "little") + b"Z" * padding
    return archive.open(info, "w", force_zip64=zip64)
