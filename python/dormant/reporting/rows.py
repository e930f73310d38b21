"""Rows of tables of tensors: layers that repeat share one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dormant.tensors.names import grouped_counts
from dormant.text.table import format_bytes, format_names

# The names of a tensor, its cells, and its bytes, before and after.
_Tensor = tuple[Sequence[str], Sequence[str], Sequence[int | None]]


def rows_of(tensors: Iterable[_Tensor]) -> list[Sequence[str]]:
    """Rows of a name, the cells and the bytes; "32 x 64.0 MiB" where 32 tensors are alike.

    Args:
        tensors: the names of each, of which tied tensors have several, then cells, then numbers of
            bytes, None for those that are not known.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    found: list[tuple[tuple[object, ...], _Tensor]] = []
    for number, tensor in enumerate(tensors):
        names, cells, sizes = tensor
        # What has several names has a row.
        key: tuple[object, ...] = (*cells, *sizes, number if len(names) > 1 else None)
        if key not in alike:
            found.append((key, tensor))
        alike.setdefault(key, []).append(names[0])
    rows: list[Sequence[str]] = []
    for key, (names, cells, sizes) in found:
        groups = grouped_counts(alike[key]) if len(names) == 1 else [(format_names(names), 1)]
        for name, count in groups:
            times = f"{count} x " if count > 1 else ""
            rows.append((name, *cells, *(f"{times}{_size(size)}" for size in sizes)))
    return rows


def _size(nbytes: int | None) -> str:
    return "later" if nbytes is None else format_bytes(nbytes)
