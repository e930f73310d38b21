"""Files as torch.save writes them, from lazy tensors, in a stream.

The layout is that of PyTorch's caffe2/serialize/inline_container.h: a zip file without compression
whose record `data.pkl` refers to records `data/KEY` with the bytes of storages.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dormant._extension import _C
from dormant.cli.zip_layout import Record, ZipLayout
from dormant.reporting.progress import Callback
from dormant.saving.publication import write_bytes
from dormant.tensors.identity import identity

_ROOT = "archive"
# Bytes that are read at a time for a checksum.
_BLOCK = 1 << 20


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
    state: Mapping[str, torch.Tensor],
    descriptor: int,
    path: Path,
    *,
    on_step: Callback,
    memory_budget: int | None = None,
) -> None:
    """Writes a state dict as torch.save does.

    Each tensor is written contiguously; names of one tensor share their record. Lazy tensors stay
    lazy.

    Args:
        state: names to tensors.
        descriptor: of an empty file, open for reading and writing.
        path: of the file, for messages.
        on_step: called with (done, total) bytes. Each counts twice: written, and read again for
            the checksums that the format has.
        memory_budget: as for `dormant.save`.

    Raises:
        NotImplementedError: dtypes that the layout has no storage type for, all of them listed.
        ValueError: `memory_budget` is too small to work in.
        OSError: the system refused to write; with its errno.
    """
    unknown = [name for name, tensor in state.items() if tensor.dtype not in _storage_types()]
    if unknown:
        raise NotImplementedError(
            f"files of torch.save for {len(unknown)} tensors, such as {unknown[0]!r} of "
            f"{state[unknown[0]].dtype}, are not supported. Write safetensors, or pass --dtype."
        )
    storages: dict[object, _Storage] = {}
    tensors: list[torch.Tensor] = []
    pickled: dict[str, _Tensor] = {}
    for name, tensor in state.items():
        key = identity(tensor)
        if key not in storages:
            storages[key] = _Storage(str(len(storages)), tensor.dtype, tensor.numel())
            tensors.append(tensor)
        shape = tuple(tensor.shape)
        strides = torch.empty(shape, device="meta").stride()
        pickled[name] = _Tensor(storages[key], shape, strides)
    document = io.BytesIO()
    _Pickler(document, protocol=2).dump(pickled)

    layout = ZipLayout()
    small = {"data.pkl": document.getvalue(), "byteorder": b"little"}
    texts = {layout.add(f"{_ROOT}/{name}", len(data)): data for name, data in small.items()}
    outputs = []
    for place, tensor in enumerate(tensors):
        nbytes = tensor.numel() * tensor.element_size()
        outputs.append((tensor, layout.add(f"{_ROOT}/data/{place}", nbytes).offset))
    version = b"3\n"
    texts[layout.add(f"{_ROOT}/version", len(version))] = version

    total = 2 * sum(record.nbytes for record in layout.records)
    for record, data in texts.items():
        write_bytes(descriptor, data, record.offset, path)
    _C.write(outputs, descriptor, str(path), lambda done, _: on_step(done, total), memory_budget)
    checked = total // 2

    def on_read(count: int) -> None:
        nonlocal checked
        checked += count
        on_step(checked, total)

    checksums = [_checksum(descriptor, record, path, on_read) for record in layout.records]
    for offset, header in layout.headers(checksums):
        write_bytes(descriptor, header, offset, path)


def _checksum(descriptor: int, record: Record, path: Path, on_read: Callable[[int], None]) -> int:
    checksum = 0
    for begin in range(0, record.nbytes, _BLOCK):
        count = min(_BLOCK, record.nbytes - begin)
        data = os.pread(descriptor, count, record.offset + begin)
        if len(data) != count:
            raise OSError(
                errno.EIO,
                f"dormant: convert: {path} gave {len(data)} of {count} bytes at offset "
                f"{record.offset + begin} after writing. Another process changed it meanwhile",
            )
        checksum = zlib.crc32(data, checksum)
        on_read(count)
    return checksum


def _storage_types() -> Mapping[torch.dtype, str]:
    types: dict[torch.dtype, str] = torch.storage._dtype_to_storage_type_map()
    return types
