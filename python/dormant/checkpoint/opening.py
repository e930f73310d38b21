"""How the files of one group are opened, and how it is checked that they belong together."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dormant._extension import _C
from dormant.checkpoint.composition import join, merged_parts
from dormant.checkpoint.decoding import Decode, decoded
from dormant.checkpoint.distributed import (
    METADATA,
    read_distributed,
    read_distributed_safetensors,
)
from dormant.checkpoint.entry import (
    Checksum,
    Contents,
    Entry,
    Item,
    StoredTensor,
    contiguous_strides,
    place_of,
)
from dormant.checkpoint.files import Group, Place
from dormant.checkpoint.gguf_file import MAGIC as GGUF
from dormant.checkpoint.gguf_file import check_split, read_gguf
from dormant.checkpoint.ranges import RangeFile
from dormant.checkpoint.stores import open_url, open_urls
from dormant.checkpoint.torch_file import Fits, Foreign, is_torch_file, read_torch_file
from dormant.checkpoint.url import Url
from dormant.tensor_parallel.rules import Rules
from dormant.text.table import format_count

# Files that are often mistaken for checkpoints, by their first bytes.
_OTHER_FILES = {
    b"version https://git-lfs": "It is a Git LFS pointer: run 'git lfs pull' to get the file.",
    b"<": "It looks like a web page: the download needed a login, or the address was wrong.",
    GGUF: "It is a GGUF file: give it a name that ends in .gguf.",
    b"\x89HDF": "It is an HDF5 file: read it with h5py, and save its tensors.",
    b"\x80": "It is a pickle that torch.save did not write: load it with the program that did.",
}

# How many times an index may be replaced while its files are opened.
_ROUNDS = 20
# How many contradictions a message lists: a hostile index may have any number.
_NAMED = 20


@dataclass(frozen=True)
class Opened:
    """The files of one group.

    Attributes:
        items: the tensors by name, as they are in the files.
        contents: the contents of each file.
        metadata: the metadata of the files and their index.
    """

    items: dict[str, Item]
    contents: list[Contents]
    metadata: dict[str, Any]


def open_group(
    group: Group,
    key: str | None,
    rules: Rules | None,
    fits: Fits | None,
    decode: Decode,
    foreign: Foreign,
) -> Opened:
    """Opens the files of a group.

    Args:
        group: the files.
        key: as for `open_checkpoint`.
        rules: as for `open_checkpoint`.
        fits: chooses among the mappings in a file of torch.save if `key` is None.
        decode: as for `open_checkpoint`; only tensor-parallel parts are decoded here.
        foreign: as for `open_checkpoint`.

    Raises:
        ValueError, KeyError, NotImplementedError, OSError: as by `open_checkpoint`.
    """
    if group.kind == "index":
        path = group.files[0]
        return _opened_at_once(path, lambda: _open_shards(path, key, fits, foreign))
    if group.kind == "distributed":
        files = group.files
        return _opened_at_once(files[0], lambda: _open_distributed(files, key, fits))
    contents = _read_all(group.files, key, fits, foreign)
    metadata: dict[str, Any] = {}
    for content in contents:
        metadata = {**content.metadata, **metadata}
    if len(contents) == 1:
        return Opened(dict(contents[0].tensors), contents, metadata)
    if group.kind == "split":
        check_split(contents)
        items: dict[str, Item] = {}
        for content in contents:
            join(items, dict(content.tensors))
        return Opened(items, contents, metadata)
    # The codes and scales of a rank belong together, however the tensor was divided.
    parts = [decoded(content.tensors, [content], decode) for content in contents]
    return Opened(merged_parts(parts, rules), contents, metadata)


def _read_all(
    places: Sequence[Place], key: str | None, fits: Fits | None, foreign: Foreign
) -> list[Contents]:
    urls = [place for place in places if isinstance(place, Url)]
    if len(urls) == len(places):
        return [
            replace(read_remote(file, url.name, key, fits, foreign), folder=url.parent)
            for url, file in zip(urls, open_urls(urls), strict=True)
        ]
    return [
        _read_all([place], key, fits, foreign)[0]
        if isinstance(place, Url)
        else _read(_C.File(place), place.name, key, fits, foreign)
        for place in places
    ]


def read_remote(
    remote: RangeFile, name: str, key: str | None, fits: Fits | None, foreign: Foreign
) -> Contents:
    """Reads everything except the data of the tensors from a remote file.

    Raises:
        ValueError, KeyError, NotImplementedError, OSError: as by `open_checkpoint`.
    """
    content = _read(remote.file(), name, key, fits, foreign)
    remote.opened(
        (entry.offset, entry.offset + entry.nbytes, name)
        for name, item in content.tensors.items()
        if (entry := item.entry).offset is not None
    )
    return content


def _read(
    file: _C.File, name: str, key: str | None, fits: Fits | None, foreign: Foreign
) -> Contents:
    first = file.read(0, min(file.size, 512))
    hint = next((text for start, text in _OTHER_FILES.items() if first.startswith(start)), None)
    if name.endswith(".safetensors"):
        # No safetensors header is so long that it uses these bytes of its length.
        if hint is None or first[4:8] == bytes(4):
            return _read_safetensors(file)
    elif first.startswith(GGUF):
        return read_gguf(file)
    elif is_torch_file(first):
        return read_torch_file(file, key=key, fits=fits, foreign=foreign)
    elif first[8:9] == b"{":
        return _read_safetensors(file)
    got = f"begins with {first[:16]!r} at byte 0" if first else "is empty"
    raise ValueError(
        f"open_checkpoint: {file.path} {got}, expected a safetensors file, a GGUF file or a file "
        f"of torch.save. {hint or 'Pass the path of a checkpoint file.'}"
    )


def _read_safetensors(file: _C.File) -> Contents:
    entries, metadata = _C.safetensors_entries(file)
    path = place_of(file)
    tensors: dict[str, StoredTensor] = {}
    for name, dtype, shape, offset, nbytes in entries:
        tensors[name] = StoredTensor(
            entry=Entry(dtype, shape, nbytes, path, offset),
            storage=file.storage(dtype, offset, nbytes),
            storage_offset=0,
            strides=contiguous_strides(shape),
        )
    return Contents(
        file=file,
        tensors=tensors,
        checksums=[Checksum("the file", 0, file.size, None)],
        metadata=dict(metadata),
    )


def _open_distributed(places: Sequence[Place], key: str | None, fits: Fits | None) -> Opened:
    if places[0].name == METADATA:
        contents = read_distributed(places[0], key=key, fits=fits)
    else:
        contents = read_distributed_safetensors(places, key=key, fits=fits)
    return Opened(dict(contents[0].tensors), contents, contents[0].metadata)


def _opened_at_once(path: Place, open_files: Callable[[], Opened]) -> Opened:
    """Opens the files that `path` refers to; if a save replaced it meanwhile, the new files."""
    for _ in range(_ROUNDS):
        before = _version_of(path)
        try:
            opened = open_files()
        except (OSError, ValueError):
            if _version_of(path) == before:
                raise
            continue
        if _version_of(path) == before:
            return opened
    raise OSError(
        errno.EBUSY,
        f"open_checkpoint: {path} was replaced {_ROUNDS} times while its files were "
        "opened. Next: try again when no process saves to this folder",
    )


def _version_of(path: Place) -> tuple[int, ...] | None:
    if isinstance(path, Url):
        return None  # a URL is requested only once
    try:
        status = path.stat()
    except OSError:
        return None  # opening it says why
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _shards_of(path: Place) -> tuple[dict[str, Place], dict[str, object]]:
    """The file of each tensor, and the metadata of the index."""
    if isinstance(path, Path):
        shards, about = _C.index_entries(path)
        return {name: Path(shard) for name, shard in shards.items()}, about
    shards, about = _C.index_entries(open_url(path).file())
    return {name: path.parent / shard for name, shard in shards.items()}, about


def _open_shards(path: Place, key: str | None, fits: Fits | None, foreign: Foreign) -> Opened:
    places, about = _shards_of(path)
    shards = {name: str(place) for name, place in places.items()}
    files = {str(place): place for place in places.values()}
    order = sorted(files)
    found = _read_all([files[shard] for shard in order], key, fits, foreign)
    contents = dict(zip(order, found, strict=True))
    owners: dict[str, str] = {}
    for shard, content in contents.items():
        for name in content.tensors:
            if name in owners:
                raise ValueError(
                    f"open_checkpoint: tensor {name!r} is in two files of {path}: {owners[name]} "
                    f"and {shard}, expected one. Do not mix files of different checkpoints."
                )
            owners[name] = shard
    wrong = [
        f"{name!r} is in {owners.get(name, 'no file')}, expected in {shard}"
        for name, shard in shards.items()
        if owners.get(name) != shard
    ] + [f"{name!r} of {owners[name]} is not in the index" for name in owners if name not in shards]
    if wrong:
        named = "; ".join(wrong[:_NAMED]) + ("; ..." if len(wrong) > _NAMED else "")
        raise ValueError(
            f"open_checkpoint: {path} does not match its files in "
            f"{format_count(len(wrong), 'tensor')}: {named}. Check that they belong to one "
            "checkpoint, or get them again."
        )
    items: dict[str, Item] = {name: contents[shard].tensors[name] for name, shard in shards.items()}
    metadata: dict[str, Any] = dict(about)
    for content in contents.values():
        metadata = {**content.metadata, **metadata}
    return Opened(items, list(contents.values()), metadata)
