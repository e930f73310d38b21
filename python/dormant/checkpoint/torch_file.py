"""Files of torch.save: which tensors they hold under which names, and what else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from dormant._extension import _C
from dormant.checkpoint import torch_legacy, torch_zip
from dormant.checkpoint.entry import (
    Checksum,
    Contents,
    Entry,
    StoredTensor,
    contiguous_strides,
    place_of,
)
from dormant.checkpoint.file_stream import open_stream
from dormant.checkpoint.torch_pickle import StorageRequest, Unpickled, read_pickle, unpickle
from dormant.tensors.identity import owns_storage
from dormant.tensors.reachable import reachable_tensors

# PyTorch's own limit for most operators (dim_bitset_size in ATen/WrapDimUtilsMulti.h).
_MOST_DIMENSIONS = 64
_DEEPEST_EXTRA = 200

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.Size)

# How many of these names a model has.
Fits = Callable[[Iterable[str]], int]

# torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX: what lies there is part of the state dict.
_EXTRA_STATE = "_extra_state"

_TORCHSCRIPT = "constants.pkl"
_LONGEST_BYTE_ORDER = 64


def is_torch_file(first_bytes: bytes) -> bool:
    """Whether a file that begins like this is one of torch.save, in any of its layouts."""
    return first_bytes.startswith((torch_zip.MAGIC, torch_legacy.PREFIX)) or _is_tar(first_bytes)


def read_torch_file(file: _C.File, *, key: str | None = None, fits: Fits | None = None) -> Contents:
    """Finds the tensors of a file of torch.save without reading their bytes.

    Args:
        file: the file; `is_torch_file` is true of it.
        key: name of the mapping in the file that holds the tensors; "" is the file's own mapping.
            None chooses it.
        fits: how many of the names that it is given are wanted.

    Raises:
        KeyError: the file has no mapping `key`.
        ValueError: it is damaged, contradicts itself, or asks for anything but
            tensors and plain containers; or it holds no mapping of names to tensors, or several.
        NotImplementedError: the layout before torch 0.1.10 (tar), TorchScript, or tensors that are
            no views of bytes in the file.
    """
    path = file.path
    unpickled, storages, checksums = _read(file)
    shared = _Storages(file, storages, unpickled)
    state, extra, inner = _state_dict(unpickled.value, path, key, fits)
    tensors = {
        name: shared.stored(value, f"{path}: tensor {name!r}") for name, value in state.items()
    }
    return Contents(
        file=file,
        tensors=tensors,
        checksums=checksums,
        versions=_versions(inner),
        extra=lambda: shared.lazy(extra, f"{path}: extra"),
    )


def read_objects(
    file: _C.File,
    finish: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    is_for_cpu: Callable[[str], bool] = lambda location: True,
) -> Any:
    """What `torch.load(weights_only=True)` returns, with lazy tensors in it.

    Args:
        file: the file.
        finish: what each tensor is passed through.
        is_for_cpu: whether what was saved from a device, of which it gets the name, shall be made
            on the CPU.

    Raises:
        ValueError: as for `read_torch_file`, but for what the containers may be.
        NotImplementedError: as for `read_torch_file`; or an object that is no plain container has
            tensors; or not everything shall be made on the CPU.
    """
    unpickled, storages, _ = _read(file)
    for request in unpickled.requests.values():
        if not is_for_cpu(request.location):
            raise NotImplementedError(
                f"open_checkpoint: {file.path}: storage {request.key!r} is of device "
                f"{request.location!r}, expected one that is made on the CPU. Load it with "
                "torch.load."
            )
    return _Storages(file, storages, unpickled, finish).lazy(unpickled.value, file.path)


def _read(file: _C.File) -> tuple[Unpickled, dict[str, _Run], list[Checksum]]:
    path = file.path
    file.copy_always()  # torch.save empties the file that it replaces
    with open_stream(file) as stream:
        first = stream.read(512)
        stream.seek(0)
        if first.startswith(torch_zip.MAGIC):
            return _read_zip(stream, file)
        if first.startswith(torch_legacy.PREFIX):
            return _read_legacy(stream, file)
        if _is_tar(first):
            raise NotImplementedError(
                f"open_checkpoint: {path} has the tar layout of torch before 0.1.10. Load it with "
                "torch.load(weights_only=False), if it is trusted, and save it with torch.save."
            )
        raise ValueError(
            f"open_checkpoint: {path} begins with {first[:16]!r}, expected a file of "
            "torch.save: a zip file or its older layout. A pickle of another kind must be "
            "loaded by the program that wrote it."
        )


@dataclass
class _Run:
    """Bytes of the file that make up one storage."""

    offset: int
    nbytes: int


def _read_zip(stream: BinaryIO, file: _C.File) -> tuple[Unpickled, dict[str, _Run], list[Checksum]]:
    path = file.path
    records = torch_zip.read_directory(stream, file.size, path)
    if _TORCHSCRIPT in records:
        raise NotImplementedError(
            f"open_checkpoint: {path} is a TorchScript program. Load it with torch.jit.load and "
            "save its state_dict() with torch.save."
        )
    order = records.get("byteorder")
    if order is not None:
        text = torch_zip.read_record(stream, order, path, most=_LONGEST_BYTE_ORDER)
        if text != b"little":
            raise ValueError(
                f"open_checkpoint: {path}: record {order.name!r} at byte {order.offset} says "
                f"{text!r:.40}, expected b'little'. Load and save it on a machine of that kind."
            )

    def exists(request: StorageRequest) -> None:
        name = f"data/{request.key}"
        record = records.get(name)
        if record is None:
            raise ValueError(f"storage {request.key!r} has no record {name!r}")
        if record.nbytes != request.nbytes:
            raise ValueError(
                f"record {record.name!r} at byte {record.offset} has {record.nbytes} bytes, "
                f"expected {request.nbytes} for {request.numel} {request.dtype}"
            )

    pickled = records["data.pkl"]
    where = f"record {pickled.name!r} at byte {pickled.offset} of {path}"
    data = torch_zip.read_record(stream, pickled, path)
    unpickled = unpickle(read_pickle(io.BytesIO(data), where), exists)
    storages = {
        key: _Run(records[f"data/{key}"].offset, records[f"data/{key}"].nbytes)
        for key in unpickled.requests
    }
    # torch.serialization.set_crc32_options(False) writes zeros.
    checked = any(record.crc for record in records.values())
    checksums = [
        Checksum(record.name, record.offset, record.nbytes, record.crc if checked else None)
        for record in records.values()
    ]
    return unpickled, storages, checksums


def _read_legacy(
    stream: BinaryIO, file: _C.File
) -> tuple[Unpickled, dict[str, _Run], list[Checksum]]:
    legacy = torch_legacy.read_legacy(stream, file.size, file.path)
    requests = legacy.unpickled.requests
    storages = {key: _Run(offset, requests[key].nbytes) for key, offset in legacy.offsets.items()}
    return legacy.unpickled, storages, [Checksum("the file", 0, file.size, None)]


class _Storages:
    """Turns the unpickler's tensors on the meta device into lazy ones over the file."""

    def __init__(
        self,
        file: _C.File,
        runs: dict[str, _Run],
        unpickled: Unpickled,
        finish: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> None:
        self._file = file
        self._finish = finish
        self._runs = runs
        self._unpickled = unpickled  # keeps the storages alive, whose identities are the keys
        self._made: dict[str, _C.FileStorage] = {}

    def stored(self, tensor: torch.Tensor, where: str) -> StoredTensor:
        """Where the tensor lies, after checking that all of it does."""
        # A file may give tensors attributes, which would be found before the methods used here.
        tensor = torch.Tensor.detach(tensor)
        place = None
        if owns_storage(tensor) and tensor.layout is torch.strided and not tensor.is_quantized:
            place = self._unpickled.places.get(tensor.untyped_storage()._cdata)
        if place is None:
            raise NotImplementedError(
                f"open_checkpoint: {where} is a {tensor.layout} tensor whose elements are no bytes "
                "of the file, expected a strided one. Load it with torch.load and save dense "
                "tensors."
            )
        run = self._runs[place.request.key]
        size, strides = tuple(tensor.shape), tuple(tensor.stride())
        begin = place.offset * place.request.dtype.itemsize
        item = tensor.dtype.itemsize
        first = int(tensor.storage_offset()) + begin // item
        if len(size) > _MOST_DIMENSIONS:
            raise ValueError(
                f"open_checkpoint: {where} has {len(size)} dimensions, expected at most "
                f"{_MOST_DIMENSIONS}. The file is damaged."
            )
        last = first + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
        end = (last + 1) * item if 0 not in size else first * item
        if begin % item or end > run.nbytes:
            raise ValueError(
                f"open_checkpoint: {where}: sizes {size} and strides {strides} of {tensor.dtype} "
                f"end at byte {end} of storage {place.request.key!r}, which has {run.nbytes} bytes "
                f"(byte {run.offset} of the file on). The file is damaged."
            )
        entry = Entry(
            dtype=tensor.dtype,
            shape=size,
            nbytes=tensor.numel() * item,
            file=place_of(self._file),
            offset=run.offset + first * item,
            strides=None if strides == contiguous_strides(size) else strides,
        )
        storage = self._storage(place.request.key, tensor.dtype)
        return StoredTensor(entry, storage, first, strides, tensor.is_conj(), tensor.is_neg())

    def _storage(self, key: str, dtype: torch.dtype) -> _C.FileStorage:
        if key not in self._made:
            run = self._runs[key]
            fits = run.nbytes % dtype.itemsize == 0
            self._made[key] = self._file.storage(
                dtype if fits else torch.uint8, run.offset, run.nbytes
            )
        return self._made[key]

    def lazy(self, value: Any, where: str) -> Any:
        """A copy of plain containers with lazy tensors in them."""
        return self._lazy(value, where, {}, 0)

    def _like(self, value: torch.Tensor, tensor: torch.Tensor, where: str) -> torch.Tensor:
        """What the pickle makes of the elements: a parameter, one that wants a gradient."""
        if vars(value):
            raise NotImplementedError(
                f"open_checkpoint: {where} has a tensor with attributes {list(vars(value))!r:.200}."
                " Load it with torch.load."
            )
        if isinstance(value, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, requires_grad=value.requires_grad)
        return tensor.requires_grad_() if value.requires_grad else tensor

    def _lazy(self, value: Any, where: str, done: dict[int, Any], depth: int) -> Any:
        if depth > _DEEPEST_EXTRA:
            raise ValueError(
                f"open_checkpoint: {where} nests containers deeper than {_DEEPEST_EXTRA}. Load it "
                "with torch.load."
            )
        if id(value) in done:
            return done[id(value)]
        if isinstance(value, torch.Tensor):
            tensor = self._finish(self.stored(value, where).tensor())
            return done.setdefault(id(value), self._like(value, tensor, where))
        if type(value) is list:
            copy: Any = done.setdefault(id(value), [])
            copy.extend(self._lazy(item, where, done, depth + 1) for item in value)
            return copy
        if type(value) is tuple:
            copy = tuple(self._lazy(item, where, done, depth + 1) for item in value)
            return done.setdefault(id(value), copy)
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            copy = done.setdefault(id(value), type(value)())
            if (versions := _versions(value)) is not None:
                copy._metadata = versions
            for name, item in dict.items(value):
                copy[name] = self._lazy(item, where, done, depth + 1)
            return copy
        if not isinstance(value, _PLAIN) and any(True for _ in reachable_tensors(value, "")):
            raise NotImplementedError(
                f"open_checkpoint: {where} has a {type(value).__name__} with tensors in it, "
                "expected them in plain containers. Load it with torch.load."
            )
        return value


def _state_dict(
    value: Any, path: str, key: str | None, fits: Fits | None
) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    """(tensors by name, what is beside them, the mapping that holds the tensors).

    Methods are those of `dict`: a file may give an OrderedDict attributes of the same names.
    """
    if not isinstance(value, dict):
        raise ValueError(
            f"open_checkpoint: {path} holds a {type(value).__name__}, expected a mapping of names "
            "to tensors. Load it with torch.load."
        )
    key = _chosen(value, path, fits) if key is None else _checked(value, path, key)
    inner = value if key == "" else value[key]
    outer: dict[str, Any] = {}
    if key != "":
        outer = {name: item for name, item in dict.items(value) if name != key}
    tensors: dict[str, torch.Tensor] = {}
    for name, item in dict.items(inner):
        if not isinstance(item, torch.Tensor):
            outer[name] = item
        elif not _is_text(name):
            raise ValueError(
                f"open_checkpoint: {path} holds a tensor under {name!r:.60}, expected a name. Load "
                "it with torch.load."
            )
        else:
            tensors[name] = item
    return tensors, outer, inner


def _checked(value: dict[Any, Any], path: str, key: str) -> str:
    """`key`, under which lies a mapping of tensors."""
    inner = value if key == "" else dict.get(value, key)
    if not isinstance(inner, dict) or (inner and not _holds_tensors(inner)):
        raise KeyError(
            f"open_checkpoint: {path} has no mapping {key!r} of names to tensors; it has "
            f"{list(_candidates(value))}."
        )
    return key


def _chosen(value: dict[Any, Any], path: str, fits: Fits | None) -> str:
    """The key of the state dict: of the mapping that fits best, or the only one that can be it.

    Training loops put a single tensor beside it (an accuracy, a loss, the state of a generator):
    a mapping of one tensor is the state dict only where no other can be.
    """
    found = _candidates(value)
    if fits is not None and len(found) > 1:
        fitting = {key: fits(names) for key, names in found.items()}
        best = [key for key, count in fitting.items() if 0 < count == max(fitting.values())]
        if len(best) == 1:
            return best[0]
    several = [key for key, names in found.items() if len(names) > 1]
    if len(several) == 1:
        return several[0]
    if len(found) == 1:
        return next(iter(found))
    if not value:
        return ""
    example = next((key for key in found if key != ""), "")
    raise ValueError(
        f"open_checkpoint: {path} holds {list(value)[:20]!r:.300}, expected tensors by name, or "
        f"one mapping of them; got {len(found)}: {list(found)[:20]!r:.300}"
        + (' ("" is the file itself)' if "" in found else "")
        + ". "
        + (
            f"Choose one: dormant.open_checkpoint(path, key={example!r})."
            if found
            else "Load it with torch.load."
        )
    )


def _candidates(value: dict[Any, Any]) -> dict[str, list[str]]:
    """The names of the tensors in each mapping that has any, by its key; "" is `value` itself."""
    found: dict[str, list[str]] = {}
    for key, item in (("", value), *dict.items(value)):
        if isinstance(key, str) and isinstance(item, dict) and not key.endswith(_EXTRA_STATE):
            names = [
                name
                for name, tensor in dict.items(item)
                if isinstance(tensor, torch.Tensor) and isinstance(name, str)
            ]
            if names or _holds_tensors(item):
                found.setdefault(key, names)
    return found


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(
        isinstance(item, torch.Tensor) for item in dict.values(value)
    )


def _versions(state: dict[str, Any]) -> dict[str, Any] | None:
    """A state dict's versions of modules, if it has them."""
    found = getattr(state, "_metadata", None)
    if not isinstance(found, dict):
        return None
    return {
        name: dict(dict.items(facts))
        for name, facts in dict.items(found)
        if isinstance(name, str) and isinstance(facts, dict)
    }


def _is_text(name: object) -> bool:
    if isinstance(name, str):
        with contextlib.suppress(UnicodeEncodeError):
            return bool(name.encode())
    return False


def _is_tar(first_bytes: bytes) -> bool:
    return first_bytes[257:262] == b"ustar" or first_bytes.startswith(b"storages\0")
