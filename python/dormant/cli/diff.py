"""`dormant diff` compares two checkpoints."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from dormant.checkpoint.api import Checkpoint, open_checkpoint
from dormant.cli.pieces import pieces
from dormant.cli.screen import format_columns
from dormant.cli.tree import dtype_name
from dormant.reporting.progress import Callback, following
from dormant.tensors.names import renaming as as_function
from dormant.text.table import format_count
from dormant_command.arguments import prefix_or_name
from dormant_command.outcome import NOT_OK, OK, Outcome

_SHOWN = 40
# Elements that are compared at a time.
_STEP = 2 << 20


@dataclass(frozen=True)
class _Compared:
    """One name.

    Attributes:
        name: in B, where both have it.
        status: "equal", "different", "only in A" or "only in B".
        dtypes: in A and in B, of those that have it.
        shapes: likewise.
        differing: elements whose bits, or with two dtypes values, differ; None if not compared.
        largest: the largest absolute difference; NaN if only one of two elements is NaN.
    """

    name: str
    status: Literal["equal", "different", "only in A", "only in B"]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    differing: int | None = None
    largest: float | None = None


def run(options: argparse.Namespace) -> Outcome:
    """What differs."""
    rename = as_function(prefix_or_name(options.rename))
    first, second = (
        open_checkpoint(
            path, key=options.key, decode=not options.no_decode, foreign=options.foreign
        )
        for path in (options.a, options.b)
    )
    names = _renamed(first, rename)
    with following(options.progress, "diff") as tell:
        compared = list(_compare(first, second, names, tell, values=not options.no_values))
    differing = [each for each in compared if each.status != "equal"]
    totals = {
        status: sum(each.status == status for each in compared)
        for status in ("equal", "different", "only in A", "only in B")
    }
    data = {
        "equal": not differing,
        "totals": {status.replace(" ", "_").lower(): count for status, count in totals.items()},
        "tensors": [_described(each) for each in compared],
    }
    code = NOT_OK if differing else OK
    if options.json:
        return Outcome(data, "", code)
    what = "names, shapes and dtypes" if options.no_values else "bits"
    lines = [_table(differing)] if differing else []
    counts = ", ".join(f"{count} {status}" for status, count in totals.items() if count)
    lines.append(f"{format_count(len(compared), 'tensor')} ({what}): {counts or 'none'}")
    return Outcome(data, "\n".join(lines), code)


def _renamed(checkpoint: Checkpoint, rename: Callable[[str], str | None]) -> dict[str, str]:
    """The names in `checkpoint` by the names under which they are compared.

    Raises:
        ValueError: two of them are renamed to one name.
    """
    names: dict[str, str] = {}
    for name in checkpoint:
        new = rename(name)
        if new is None:
            continue
        if new in names:
            raise ValueError(f"{names[new]!r} and {name!r} are both renamed to {new!r}.")
        names[new] = name
    return names


def _compare(
    first: Checkpoint,
    second: Checkpoint,
    names: Mapping[str, str],
    tell: Callback | None,
    *,
    values: bool,
) -> Iterator[_Compared]:
    total = sum(second.entries[name].nbytes for name in names if name in second)
    done = 0
    for name in dict.fromkeys((*names, *second)):
        if name not in names or name not in second:
            entry = first.entries[names[name]] if name in names else second.entries[name]
            status: Any = "only in A" if name in names else "only in B"
            yield _Compared(name, status, (dtype_name(entry),), (entry.shape,))
            continue
        a, b = first.entries[names[name]], second.entries[name]
        count = largest = None
        if values and a.shape == b.shape:
            count, largest = _differences(first[names[name]], second[name])
        alike = a.shape == b.shape and a.dtype == b.dtype and not count
        yield _Compared(
            name,
            "equal" if alike else "different",
            (dtype_name(a), dtype_name(b)),
            (a.shape, b.shape),
            count,
            largest,
        )
        done += b.nbytes
        if tell is not None:
            tell(done, total)


def _differences(a: torch.Tensor, b: torch.Tensor) -> tuple[int, float]:
    """How many elements differ, and the largest absolute difference."""
    count, largest = 0, 0.0
    for ours, theirs in zip(pieces(a, elements=_STEP), pieces(b, elements=_STEP), strict=True):
        if ours.dtype == theirs.dtype and torch.equal(_bytes(ours), _bytes(theirs)):
            continue
        wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
        mine, other = ours.to(wide), theirs.to(wide)
        if ours.dtype == theirs.dtype:
            differs = (_bytes(ours) != _bytes(theirs)).any(1)
        else:
            differs = (mine != other) & ~(mine.isnan() & other.isnan())
        count += int(differs.sum())
        distances = torch.where(mine == other, 0.0, (mine - other).abs())[differs]
        distances = distances[~(mine.isnan() & other.isnan())[differs]]
        if distances.numel():
            largest = max(largest, float(distances.max()), key=_nan_last)
    return count, largest


def _bytes(piece: torch.Tensor) -> torch.Tensor:
    return piece.view(torch.uint8).view(-1, piece.element_size())


def _nan_last(number: float) -> float:
    return math.inf if math.isnan(number) else number


def _described(compared: _Compared) -> dict[str, Any]:
    described = asdict(compared)
    largest = compared.largest
    if largest is not None and not math.isfinite(largest):
        described["largest"] = str(largest)  # JSON has no such number
    return described


def _table(differing: list[_Compared]) -> str:
    cells = [
        (
            each.name,
            each.status,
            " / ".join(dict.fromkeys(each.dtypes)),
            " / ".join(dict.fromkeys(map(_shape, each.shapes))),
            "" if each.differing is None else f"{each.differing:,}",
            "" if each.largest is None else f"{each.largest:.3g}",
        )
        for each in differing[:_SHOWN]
    ]
    header = ("tensor", "status", "dtype", "shape", "differing", "largest difference")
    table = format_columns(header, cells, right=(4, 5))
    if len(differing) > _SHOWN:
        table += f"\n... {len(differing) - _SHOWN} more"
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "scalar"
