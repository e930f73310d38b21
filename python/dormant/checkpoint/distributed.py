"""Folders of torch.distributed.checkpoint: each tensor is assembled from the parts of the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

from dormant._extension import _C
from dormant.checkpoint.entry import (
    Checksum,
    Contents,
    Entry,
    StoredTensor,
    contiguous_strides,
    place_of,
)
from dormant.checkpoint.files import Place
from dormant.checkpoint.ranges import RangeFile
from dormant.checkpoint.stores import open_url, open_urls
from dormant.checkpoint.torch_file import Fits, is_torch_file, read_objects
from dormant.checkpoint.url import Url

METADATA = ".metadata"

_ZIP = b"PK\x03\x04"
_LONGEST_OBJECT = 1 << 30

ValuePath = tuple[str | int, ...]


def read_distributed(
    metadata: Place, *, key: str | None = None, fits: Fits | None = None
) -> list[Contents]:
    """Reads a `.metadata`; the positions of tensors in its files are looked up when needed.

    Args:
        metadata: its path or URL.
        key: the mapping in the saved state dict whose tensors are wanted; nested mappings are
            separated by dots ("app.model"). "" and None mean all tensors, by their full names.
        fits: returns how many of the given names are wanted; chooses the mapping if `key` is None.

    Returns:
        The contents of the metadata, which has all tensors, and those of each data file.

    Raises:
        ValueError, NotImplementedError, OSError: as by `open_checkpoint`.
        KeyError: nothing was saved under `key`.
    """
    if isinstance(metadata, Path):
        file = _C.File(metadata)
        folder = Path(file.path).parent
        opened = _C.distributed_entries(file, lambda name: _data_file(folder / name))
        return _contents(file, opened, key, fits)
    remote = [open_url(metadata)]

    def open_beside(name: str) -> _C.File:
        remote.append(open_url(metadata.parent / name))
        return remote[-1].file()

    file = remote[0].file()
    opened = _C.distributed_entries(file, open_beside)
    remote[0].opened([])
    return _contents(file, opened, key, fits, remote[1:], metadata.parent)


def read_distributed_safetensors(
    places: Sequence[Place], *, key: str | None = None, fits: Fits | None = None
) -> list[Contents]:
    """Does the same for safetensors files whose headers say which parts they contain."""
    remote = open_urls([place for place in places if isinstance(place, Url)])
    files = [_C.File(place) for place in places if isinstance(place, Path)]
    files += [each.file() for each in remote]
    opened = _C.distributed_safetensors_entries(files)
    folder = places[0].parent if isinstance(places[0], Url) else None
    return _contents(None, opened, key, fits, remote, folder)


def _data_file(path: Path) -> _C.File:
    file = _C.File(path)
    file.copy_always()  # torch's writer empties the file that it replaces
    return file


def _contents(
    metadata: _C.File | None,
    opened: _C.DistributedEntries,
    key: str | None,
    fits: Fits | None,
    remote: Sequence[RangeFile] = (),
    folder: Url | None = None,
) -> list[Contents]:
    tensors, objects, paths, files, about = opened
    where = str(place_of(metadata if metadata is not None else files[0]))
    places = [place_of(file) for file in files]
    stored: dict[str, StoredTensor] = {}
    ranges: list[dict[tuple[int, int], None]] = [{} for _ in files]
    for name, dtype, shape, nbytes, storage, parts in tensors:
        for number, offset, length, _ in parts:
            ranges[number][offset, length] = None
        entries = tuple(
            Entry(dtype, sizes, _nbytes(sizes, dtype.itemsize), places[number], offset)
            for number, offset, _, sizes in parts
        )
        entry = entries[0] if len(entries) == 1 and entries[0].shape == shape else None
        stored[name] = StoredTensor(
            entry=entry or Entry(dtype, shape, nbytes, None, None, parts=entries),
            storage=storage,
            storage_offset=0,
            strides=contiguous_strides(shape),
        )
    for _, number, offset, length in objects:
        ranges[number][offset, length] = None
    numbers = {file.path: number for number, file in enumerate(files)}
    for each in remote:
        number = numbers[each.name]
        each.opened(
            (offset, offset + length, name)
            for name, *_, parts in tensors
            for part, offset, length, _ in parts
            if part == number
        )
    values: dict[str, StoredTensor | _Object] = {
        **stored,
        **{name: _Object(files[n], offset, length) for name, n, offset, length in objects},
    }
    saved = {name: (paths.get(name, (name,)), value) for name, value in values.items()}
    prefix = _chosen(saved, where, key, fits)
    found: dict[str, StoredTensor] = {}
    rest: list[tuple[ValuePath, StoredTensor | _Object]] = []
    for name, (path, value) in saved.items():
        inner = name if prefix == "" else _below(path, prefix)
        if inner is None or isinstance(value, _Object):
            rest.append((path, value))
        else:
            found[inner] = value
    storages = [value.storage for value in stored.values()]

    def extra() -> dict[str, Any]:
        return _nested(rest, where)

    def checksums(number: int) -> Sequence[Checksum]:
        if metadata is None:
            return [Checksum("the file", 0, files[number].size, None)]
        return _ArchiveChecksums(files[number], tuple(sorted(ranges[number])))

    contents = [
        Contents(file, {}, cast("list[Checksum]", checksums(number)))
        for number, file in enumerate(files)
    ]
    if metadata is not None:
        own = cast("list[Checksum]", _MetadataChecksums(metadata, storages))
        contents.insert(0, Contents(metadata, {}, own))
    contents[0] = replace(contents[0], tensors=found, metadata=dict(about), extra=extra)
    return [replace(each, folder=folder) for each in contents]


def _nbytes(shape: tuple[int, ...], itemsize: int) -> int:
    for size in shape:
        itemsize *= size
    return itemsize


def _below(path: ValuePath, prefix: str) -> str | None:
    """The name of a value in the mapping `prefix`; None if it is not in it."""
    for depth in range(1, len(path)):
        if ".".join(map(str, path[:depth])) == prefix:
            return ".".join(map(str, path[depth:]))
    return None


def _chosen(
    saved: Mapping[str, tuple[ValuePath, StoredTensor | _Object]],
    where: str,
    key: str | None,
    fits: Fits | None,
) -> str:
    """The mapping that holds the wanted tensors; "" means all."""
    if key == "" or (key is None and fits is None):
        return ""
    candidates: dict[str, list[str]] = {"": []}
    for name, (path, value) in saved.items():
        if isinstance(value, StoredTensor):
            candidates[""].append(name)
            for depth in range(1, len(path)):
                prefix = ".".join(map(str, path[:depth]))
                candidates.setdefault(prefix, []).append(".".join(map(str, path[depth:])))
    if key is not None:
        if key not in candidates:
            raise KeyError(
                f"open_checkpoint: {where} has no mapping {key!r} with tensors; it has "
                f"{list(candidates)[1:21]!r}."
            )
        return key
    assert fits is not None
    fitting = {prefix: fits(names) for prefix, names in candidates.items()}
    # If several match equally well, the outermost.
    return max(fitting, key=lambda prefix: (fitting[prefix], -prefix.count("."), -len(prefix)))


@dataclass(frozen=True)
class _Object:
    """A value in a file that is not a tensor, as torch.save wrote it."""

    file: _C.File
    offset: int
    length: int

    def read(self) -> Any:
        """The value, which may contain lazy tensors; its bytes if torch.save did not write it."""
        part = self.file.part(self.offset, self.length)
        first = part.read(0, min(self.length, 512))
        if is_torch_file(first):
            return read_objects(part)
        if self.length > _LONGEST_OBJECT:
            raise ValueError(
                f"open_checkpoint: {part.path} has {self.length} bytes at byte {self.offset} of a "
                f"value that is not a tensor, expected at most {_LONGEST_OBJECT}."
            )
        return part.read(0, self.length)


class _LateChecksums(Sequence[Checksum]):
    """Checksums that are looked up when they are first needed."""

    @cached_property
    def _found(self) -> list[Checksum]:
        return list(self._find())

    def _find(self) -> Iterable[Checksum]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Checksum]:
        return iter(self._found)

    @overload
    def __getitem__(self, place: int) -> Checksum: ...
    @overload
    def __getitem__(self, place: slice) -> list[Checksum]: ...
    def __getitem__(self, place: int | slice) -> Checksum | list[Checksum]:
        """One or some of them."""
        return self._found[place]


class _ArchiveChecksums(_LateChecksums):
    """The checksums of all archives in a file."""

    def __init__(self, file: _C.File, ranges: tuple[tuple[int, int], ...]) -> None:
        self._file = file
        self._ranges = ranges

    def _find(self) -> Iterator[Checksum]:
        for offset, length in self._ranges:
            if self._file.read(offset, min(length, len(_ZIP))) != _ZIP:
                yield Checksum("a value", offset, length, None)
                continue
            records = _C.archive_records(self._file, offset, length)
            # torch.serialization.set_crc32_options(False) writes zeros.
            checked = any(crc for *_, crc in records)
            for name, place, nbytes, crc in records:
                yield Checksum(name, place, nbytes, crc if checked else None)


class _MetadataChecksums(_LateChecksums):
    """The checksum of the metadata, after comparing all of it with the files."""

    def __init__(self, file: _C.File, storages: Sequence[_C.FileStorage]) -> None:
        self._file = file
        self._storages = storages

    def _find(self) -> Iterator[Checksum]:
        for storage in self._storages:
            storage.check()
        yield Checksum("the metadata", 0, self._file.size, None)


def _nested(
    values: Sequence[tuple[ValuePath, StoredTensor | _Object]], where: str
) -> dict[str, Any]:
    """Mappings and lists as they were saved."""
    root: dict[Any, Any] = {}
    for path, value in values:
        container: Any = root
        for step, following in zip(path, (*path[1:], None), strict=True):
            if isinstance(container, list):
                # A path from a file of anyone may claim any index.
                if not isinstance(step, int) or step > len(values):
                    raise _contradiction(path, where)
                container.extend([None] * (step + 1 - len(container)))
                held = container[step]
            else:
                held = container.get(step) if isinstance(container, dict) else _TAKEN
            if following is None:
                if held is not None:
                    raise _contradiction(path, where)
                container[step] = value.read() if isinstance(value, _Object) else value.tensor()
            elif held is None:
                held = container[step] = [] if isinstance(following, int) else {}
            container = held
    return root


_TAKEN = object()


def _contradiction(path: ValuePath, where: str) -> ValueError:
    return ValueError(
        f"open_checkpoint: {where}: the path {list(path)!r:.200} of a value contradicts the paths "
        "of other values. The file is damaged; get it again."
    )
