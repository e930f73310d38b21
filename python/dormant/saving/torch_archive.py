"""Streams lazy tensors to files in the format of torch.save.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dormant._extension import _C
from dormant.publication.publication import write_bytes
from dormant.saving.contents import obstacle
from dormant.saving.stream import FilePlan
from dormant.saving.zip_layout import Record, ZipLayout
from dormant.tensors.identity import identity

_ROOT = "archive"
# Bytes that are read at a time for a checksum.
_BLOCK = 1 << 20
_PROTOCOL = 2  # that of torch.save


@dataclass(frozen=True)
class Archive:
    """The planned contents of a file of torch.save.

    Attributes:
        texts: the small records, each with its offset in the archive.
        tensors: the tensors, each with its offset in the archive.
        layout: the positions of the records.
        nbytes: size of the archive.
    """

    texts: list[tuple[int, bytes]]
    tensors: list[tuple[torch.Tensor, int]]
    layout: ZipLayout
    nbytes: int

    @property
    def end_of_records(self) -> int:
        """The end of the last record, which is followed by the directory."""
        last = self.layout.records[-1]
        return last.offset + last.nbytes


def plan_torch_archive(value: Any) -> FilePlan:
    """Lays out the file that torch.save would write for an object and all tensors in it.

    Raises:
        ValueError, NotImplementedError: as by `lay_out_archive`.
    """
    return plan_archives([(0, lay_out_archive(value))])


def plan_archives(archives: Sequence[tuple[int, Archive]]) -> FilePlan:
    """Lays out a file of several archives, given with their offsets in order."""
    begin, last = archives[-1]

    def seal(descriptor: int, path: Path, on_read: Callable[[int], None]) -> None:
        for begin, archive in archives:
            checksums = [
                _checksum(descriptor, begin, record, path, on_read)
                for record in archive.layout.records
            ]
            for offset, header in archive.layout.headers(checksums):
                write_bytes(descriptor, header, begin + offset, path)

    return FilePlan(
        [(begin + offset, text) for begin, each in archives for offset, text in each.texts],
        [(tensor, begin + offset) for begin, each in archives for tensor, offset in each.tensors],
        begin + last.end_of_records,
        seal,
    )


def lay_out_archive(value: Any, *, location: str | None = None) -> Archive:
    """Lays out an archive of an object with all tensors in it.

    Tensors that share elements also share them after loading, with their strides. If only one
    tensor uses a storage, only its elements are written, whereas torch.save writes the whole
    storage.

    Args:
        value: names to tensors, or any object that can be pickled.
        location: the device to which tensors are loaded by default; None means the device of each
            tensor.

    Raises:
        ValueError: tensors have no values or another layout (all of them are listed), or something
            cannot be pickled.
        NotImplementedError: a tensor subclass is made of other tensors.
    """
    named = value.items() if isinstance(value, Mapping) else ()
    found = _Found({id(tensor): repr(name) for name, tensor in named})
    _pickled(value, found.note)
    found.check()
    records = _Records(found.tensors, location)
    document = _pickled(value, records.reduce)

    layout = ZipLayout()
    small = {"data.pkl": document, "byteorder": b"little"}
    texts = [
        (layout.add(f"{_ROOT}/{name}", len(data)).offset, data) for name, data in small.items()
    ]
    tensors = []
    for place, tensor in enumerate(records.written):
        nbytes = tensor.numel() * tensor.element_size()
        tensors.append((tensor, layout.add(f"{_ROOT}/data/{place}", nbytes).offset))
    version = b"3\n"
    texts.append((layout.add(f"{_ROOT}/version", len(version)).offset, version))
    return Archive(texts, tensors, layout, layout.nbytes)


Reduced = tuple[Any, ...]


@dataclass
class _Found:
    """The tensors of an object, in the order in which they are pickled."""

    names: Mapping[int, str]
    tensors: list[torch.Tensor] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def note(self, tensor: torch.Tensor) -> Reduced:
        name = self.names.get(id(tensor), f"a tensor of {tensor.dtype}")
        cause = obstacle(tensor, name, _obstacle)
        if cause is None:
            self.tensors.append(tensor)
        else:
            self.refused.append(f"{name}: {cause}")
        return list, ()

    def check(self) -> None:
        if self.refused:
            raise ValueError(
                f"save: a file of torch.save cannot hold {len(self.refused)} of "
                f"{len(self.refused) + len(self.tensors)} tensors: {'; '.join(self.refused)}. "
                "Leave them out, or convert them."
            )


def _obstacle(tensor: torch.Tensor) -> str | None:
    if tensor.is_quantized:
        return f"its dtype is {tensor.dtype}, of PyTorch's own quantized tensors"
    known = tensor.dtype in _storage_types() or tensor.dtype in torch.storage._new_dtypes()
    return None if known else f"the format has no {tensor.dtype}"


@dataclass(frozen=True)
class _Record:
    """A record of elements; the pickle refers to it by a persistent id."""

    key: str
    kind: type
    numel: int
    location: str


class _Records:
    """The elements that are written, and the positions of the tensors in them.

    Args:
        tensors: all tensors that are written.
        location: as for `lay_out_archive`.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], location: str | None = None) -> None:
        self.written: list[torch.Tensor] = []
        self._location = location
        self._places: dict[object, tuple[_Record, int, tuple[int, ...]]] = {}
        distinct = {identity(tensor): tensor for tensor in tensors}
        storages: dict[object, list[torch.Tensor]] = {}
        for key, tensor in distinct.items():
            # The bits of a view say how to read its elements; the resulting values are written.
            alone = tensor.is_conj() or tensor.is_neg() or tensor.numel() == 0
            of_one = key if alone else (_C.storage_id(tensor), tensor.dtype)
            storages.setdefault(of_one, []).append(tensor)
        for group in storages.values():
            for run in _overlapping(group):
                self._add(run)

    def _add(self, run: list[torch.Tensor]) -> None:
        """Adds tensors that share elements."""
        first = run[0]
        begin, end = int(first.storage_offset()), max(map(_end, run))
        if len(run) == 1 and not _is_dense(first):
            record = self._record(first)
            strides = torch.empty(first.shape, device="meta").stride()
            self._places[identity(first)] = (record, 0, strides)
            return
        record = self._record(_C.view_as(first, first.dtype, (end - begin,), (1,), begin))
        for tensor in run:
            offset = int(tensor.storage_offset()) - begin
            self._places[identity(tensor)] = (record, offset, tensor.stride())

    def _record(self, tensor: torch.Tensor) -> _Record:
        key = str(len(self.written))
        self.written.append(tensor)
        device = "cpu" if tensor.device.type == "cpu" else str(tensor.device)
        location = self._location or device
        name = _storage_types().get(tensor.dtype)
        if name is None:
            nbytes = tensor.numel() * tensor.element_size()
            return _Record(key, torch.UntypedStorage, nbytes, location)
        return _Record(key, getattr(torch, name), tensor.numel(), location)

    def reduce(self, tensor: torch.Tensor) -> Reduced:
        """As `Parameter.__reduce_ex__` and `Tensor._reduce_ex_internal` in torch do."""
        hooks: OrderedDict[Any, Any] = OrderedDict()
        if type(tensor) is torch.nn.Parameter:
            return torch._utils._rebuild_parameter, (tensor.data, tensor.requires_grad, hooks)
        record, offset, strides = self._places[identity(tensor)]
        arguments = (record, offset, tuple(tensor.shape), strides, tensor.requires_grad, hooks)
        if record.kind is torch.UntypedStorage:
            return torch._utils._rebuild_tensor_v3, (*arguments, tensor.dtype)
        return torch._utils._rebuild_tensor_v2, arguments


def _end(tensor: torch.Tensor) -> int:
    """The end of the last element of a non-empty tensor in its storage."""
    extent = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return int(tensor.storage_offset()) + extent + 1


def _overlapping(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Groups of tensors of one storage whose ranges of elements overlap."""
    runs: list[list[torch.Tensor]] = []
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: int(tensor.storage_offset())):
        if runs and tensor.storage_offset() < end:
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
        end = max(end, _end(tensor)) if tensor.numel() else end
    return runs


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor has all elements between its first and its last one."""
    if tensor.numel() == 0 or tensor.is_conj() or tensor.is_neg():
        return False
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


class _Pickler(pickle.Pickler):
    """Pickles tensors with a function, and records by their persistent ids."""

    def __init__(self, file: io.BytesIO, reduce: Callable[[torch.Tensor], Reduced]) -> None:
        super().__init__(file, _PROTOCOL)
        self._reduce = reduce

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Record):
            return None
        return ("storage", value.kind, value.key, value.location, value.numel)

    def reducer_override(self, value: Any) -> Any:
        return self._reduce(value) if isinstance(value, torch.Tensor) else NotImplemented


def _pickled(value: Any, reduce: Callable[[torch.Tensor], Reduced]) -> bytes:
    document = io.BytesIO()
    try:
        _Pickler(document, reduce).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"save: a file of torch.save cannot hold what cannot be pickled: {error}. Leave it out."
        ) from error
    return document.getvalue()


def _checksum(
    descriptor: int, start: int, record: Record, path: Path, on_read: Callable[[int], None]
) -> int:
    """The CRC-32 of a record of an archive that begins at `start`."""
    checksum = 0
    for begin in range(start + record.offset, start + record.offset + record.nbytes, _BLOCK):
        count = min(_BLOCK, start + record.offset + record.nbytes - begin)
        data = os.pread(descriptor, count, begin)
        if len(data) != count:
            raise OSError(
                errno.EIO,
                f"save: read {len(data)} of {count} bytes of {path} at offset {begin} "
                "after writing. Another process changed the file",
            )
        checksum = zlib.crc32(data, checksum)
        on_read(count)
    return checksum


def _storage_types() -> dict[torch.dtype, str]:
    types: dict[torch.dtype, str] = torch.storage._dtype_to_storage_type_map()
    return types
