"""`dormant inspect` shows the contents of a checkpoint."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dormant.checkpoint.api import Checkpoint, open_checkpoint
from dormant.checkpoint.entry import Entry
from dormant.checkpoint.gguf_file import StoredArray
from dormant.cli.pieces import pieces
from dormant.cli.screen import format_columns
from dormant.cli.tree import Row, dtype_name, tree_rows
from dormant.reporting.progress import Callback, following
from dormant.text.printable import printable
from dormant.text.table import format_bytes, format_count
from dormant_command.outcome import Outcome

_SHOWN = 20


def run(options: argparse.Namespace) -> Outcome:
    """The contents of the checkpoint."""
    checkpoint = open_checkpoint(
        options.paths,
        key=options.key,
        decode=not options.no_decode,
        foreign=options.foreign,
    )
    hashes = _hashes(checkpoint, options.progress) if options.hash else {}
    duplicates = _duplicates(checkpoint.entries, hashes)
    totals = _totals(checkpoint.entries)
    rows = tree_rows(checkpoint.entries, options.depth)
    data = {
        "files": [str(path) for path in checkpoint.files],
        "metadata": {key: _shown(value) for key, value in checkpoint.metadata.items()},
        "are_differences": checkpoint.are_differences,
        "foreign": list(checkpoint.foreign),
        "totals": totals,
        "tree": [asdict(row) for row in rows],
        "tensors": [
            _described(name, entry, hashes.get(name)) for name, entry in checkpoint.entries.items()
        ],
        "duplicates": duplicates,
    }
    if options.json:
        return Outcome(data, "")  # a table needs rich, and is not printed
    body = _tensor_table(checkpoint.entries) if options.tensors else _tree_table(rows)
    lines = [*_head(checkpoint), "", body, "", *_foot(checkpoint, totals, duplicates)]
    return Outcome(data, "\n".join(lines))


def _shown(value: Any) -> Any:
    """Metadata for --json; a long array, such as a vocabulary, is shortened."""
    if not isinstance(value, StoredArray):
        return value
    return list(value) if len(value) <= _SHOWN else repr(value)


def _described(name: str, entry: Entry, sha256: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": name,
        "dtype": dtype_name(entry),
        "shape": list(entry.shape),
        "nbytes": entry.nbytes,
        "file": None if entry.file is None else str(entry.file),
        "offset": entry.offset,
        "encoding": entry.encoding or None,
        "parts": [_described(name, part, None) for part in entry.parts],
    }
    if sha256 is not None:
        described["sha256"] = sha256
    return described


def _totals(entries: Mapping[str, Entry]) -> dict[str, Any]:
    dtypes: dict[str, dict[str, int]] = {}
    for entry in entries.values():
        total = dtypes.setdefault(dtype_name(entry), {"tensors": 0, "elements": 0, "nbytes": 0})
        total["tensors"] += 1
        total["elements"] += math.prod(entry.shape)
        total["nbytes"] += entry.nbytes
    return {
        "tensors": len(entries),
        "elements": sum(total["elements"] for total in dtypes.values()),
        "nbytes": sum(total["nbytes"] for total in dtypes.values()),
        "dtypes": dtypes,
        "encodings": _encodings(entries),
    }


def _encodings(entries: Mapping[str, Entry]) -> dict[str, dict[str, int]]:
    """The number of tensors with each encoding, and their bytes in the files."""
    found: dict[str, dict[str, int]] = {}
    for entry in entries.values():
        if entry.encoding:
            total = found.setdefault(entry.encoding, {"tensors": 0, "nbytes": 0})
            total["tensors"] += 1
            total["nbytes"] += sum(part.nbytes for part in entry.parts) or entry.nbytes
    return found


def _hashes(checkpoint: Checkpoint, progress: bool | Callback | None) -> dict[str, str]:
    """SHA-256 of the elements of each tensor, in logical order."""
    hashes = {}
    done = 0
    with following(progress, "inspect") as tell:
        for name in checkpoint:
            sha256 = hashlib.sha256()
            for piece in pieces(checkpoint[name]):
                sha256.update(ctypes.string_at(piece.data_ptr(), piece.nbytes))
                done += piece.nbytes
                if tell is not None:
                    tell(done, checkpoint.nbytes)
            hashes[name] = sha256.hexdigest()
    return hashes


def _duplicates(entries: Mapping[str, Entry], hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Names of tensors with the same bytes of a file or, with `hashes`, with equal contents."""
    groups: dict[object, list[str]] = {}
    for name, entry in entries.items():
        if not entry.nbytes:
            continue
        identity: object = (entry.dtype, entry.shape, _place(entry))
        if name in hashes:
            identity = (entry.dtype, entry.shape, hashes[name])
        groups.setdefault(identity, []).append(name)
    return [
        {
            "names": names,
            "nbytes": entries[names[0]].nbytes,
            "same_bytes_of_the_file": len({_place(entries[name]) for name in names}) == 1,
        }
        for names in groups.values()
        if len(names) > 1
    ]


def _place(entry: Entry) -> object:
    return entry.file, entry.offset, entry.strides, tuple(_place(part) for part in entry.parts)


def _head(checkpoint: Checkpoint) -> list[str]:
    files = [printable(str(path)) for path in checkpoint.files]
    lines = files[:_SHOWN]
    if len(files) > _SHOWN:
        lines.append(f"... {len(files) - _SHOWN} more files")
    if checkpoint.are_differences:
        lines.append("contains differences, which must be added to another checkpoint")
    for key, value in checkpoint.metadata.items():
        text = printable(str(value))
        lines.append(f"{printable(str(key))}: {text if len(text) < 100 else text[:100] + '...'}")
    if names := [printable(name) for name in checkpoint.foreign]:
        more = f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(
            f"classes and functions that the file names (not imported or called): "
            f"{', '.join(names[:_SHOWN])}{more}"
        )
    return lines


def _foot(
    checkpoint: Checkpoint, totals: Mapping[str, Any], duplicates: list[dict[str, Any]]
) -> list[str]:
    kinds = ", ".join(
        f"{total['tensors']} {dtype} ({format_bytes(total['nbytes'])})"
        for dtype, total in totals["dtypes"].items()
    )
    lines = [
        f"{format_count(totals['tensors'], 'tensor')}, {totals['elements']:,} elements, "
        f"{format_bytes(totals['nbytes'])}" + (f": {kinds}" if kinds else "")
    ]
    lines += [
        f"encoded as {encoding}: {format_count(total['tensors'], 'tensor')}, "
        f"{format_bytes(total['nbytes'])}"
        for encoding, total in totals["encodings"].items()
    ]
    merged = [e for e in checkpoint.entries.values() if e.parts and not e.encoding]
    if merged:
        most = max(len(entry.parts) for entry in merged)
        lines.append(f"{format_count(len(merged), 'tensor')} merged from up to {most} parts")
    for duplicate in duplicates[:_SHOWN]:
        what = "same bytes" if duplicate["same_bytes_of_the_file"] else "equal contents"
        names = ", ".join(map(printable, duplicate["names"]))
        lines.append(f"duplicates ({what}, {format_bytes(duplicate['nbytes'])}): {names}")
    if len(duplicates) > _SHOWN:
        lines.append(f"... {len(duplicates) - _SHOWN} more groups of duplicates")
    return lines


def _tree_table(rows: list[Row]) -> str:
    cells = [
        (
            "  " * row.level + row.name,
            str(row.tensors),
            f"{row.elements:,}",
            format_bytes(row.nbytes),
            ", ".join(row.dtypes),
            "" if row.shape is None else _shape(row.shape),
        )
        for row in rows
    ]
    header = ("module", "tensors", "elements", "bytes", "dtype", "shape")
    return format_columns(header, cells, right=(1, 2, 3))


def _tensor_table(entries: Mapping[str, Entry]) -> str:
    cells = [
        (
            name,
            dtype_name(entry),
            _shape(entry.shape),
            format_bytes(entry.nbytes),
            entry.encoding
            or (f"{len(entry.parts)} parts" if entry.file is None else Path(entry.file).name),
            "" if entry.offset is None else str(entry.offset),
        )
        for name, entry in entries.items()
    ]
    header = ("tensor", "dtype", "shape", "bytes", "file", "offset")
    return format_columns(header, cells, right=(3, 5))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "scalar"
