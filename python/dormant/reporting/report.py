"""`Report` says what an operation did to each tensor, and what it cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from dormant.reporting.memory import MemorySample
from dormant.reporting.plot import plot_report
from dormant.tensors.names import Mismatch, grouped
from dormant.text.printable import printable
from dormant.text.table import format_bytes, format_count, format_html_table, format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Origin = Literal["checkpoint", "initialized", "quantized", "empty", "real", "meta"]
Way = Literal["tiles", "mapped", "replay", "received"]

_HEADER = ("origin", "dtype", "tensors", "bytes", "largest")


# What tensors were, by the way in which they were materialized.
_WAYS = {
    "tiles": "computed in tiles",
    "mapped": "mapped from files",
    "replay": "replayed whole",
    "received": "received from other ranks",
}


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a `Report`.

    Attributes:
        names: every name that leads to it; tied tensors and aliases have several.
        shape: its sizes.
        dtype: its dtype as text, "float32".
        nbytes: bytes of its elements; 0 on the meta device.
        origin: "checkpoint" (its elements were made from a file), "initialized" (its history was
            run), "quantized" (a statistic of a quantized weight), "empty" (memory without values),
            "real" (it had memory before), or "meta" (it is on the meta device and has no values).
        operators: recorded operators that were run for its storage; 0 if it was already real.
        storage: identity of its storage, which is equal for views of one storage.
        way: how its storage was materialized: "tiles" (piece by piece, in parallel), "mapped" (the
            bytes of the file are mapped), "replay" (its history has an operator that runs only on
            whole tensors), "received" (another rank read it, see `share_reads`); None if it was
            already real.
        files: paths of the files that it was read from.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    origin: Origin
    operators: int
    storage: int
    way: Way | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Report:
    """What `materialize`, `load` or `save` did.

    Attributes:
        tensors: every distinct tensor of the target; tied tensors are listed once.
        storages: the number of distinct storages among them.
        nbytes: bytes of these storages.
        lazy_nbytes: bytes of the storages that had no memory before.
        operators: recorded operators that were run; an operator that several storages share is
            counted for each.
        seconds: wall-clock time.
        peak_memory: highest resident memory of the process during the operation, in bytes; None if
            the system does not say. It is exact if it was the highest since the process started;
            otherwise, it is the highest sample between storages.
        value_reads: operators that needed values while this thread recorded, with the bytes that
            were computed early for them.
        random_path: a description of the code that drew random numbers on this machine; "" if none
            were drawn.
        values: the argument `values` of `materialize`.
        read_bytes: bytes of the elements that were made from files.
        initialized_bytes: bytes of the elements that were drawn or filled, including elements that
            were overwritten later.
        missing_keys: names that the model has and the checkpoint does not; `load` initialized them,
            or left them unchanged.
        unexpected_keys: names that the checkpoint has and the model does not.
        mismatched_keys: names that both have with different shapes, with the shape in the
            checkpoint and the shape in the model; they are not in `missing_keys`.
        memory_trace: the memory of the process over time, if `trace_memory=True` was passed and the
            system provides it.
    """

    tensors: list[TensorReport]
    storages: int
    nbytes: int
    lazy_nbytes: int
    operators: int
    seconds: float
    peak_memory: int | None
    value_reads: dict[str, int] = field(default_factory=dict)
    random_path: str = ""
    values: Literal["exact", "fast", "empty"] = "exact"
    read_bytes: int = 0
    initialized_bytes: int = 0
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    mismatched_keys: tuple[Mismatch, ...] = ()
    memory_trace: tuple[MemorySample, ...] = ()

    @property
    def lazy_rate(self) -> float:
        """Share of the bytes that had no memory before; 1.0 if there are no bytes."""
        return self.lazy_nbytes / self.nbytes if self.nbytes else 1.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes made from files per second; 0.0 if there were none."""
        return self.read_bytes / self.seconds if self.seconds > 0 else 0.0

    def count(self, origin: Origin) -> int:
        """Number of tensors of one origin.

        Raises:
            ValueError: there is no such origin.
        """
        _check_name("count", "origin", origin, get_args(Origin))
        return sum(tensor.origin == origin for tensor in self.tensors)

    def count_way(self, way: Way) -> int:
        """Number of tensors whose storages were materialized in one way.

        Raises:
            ValueError: there is no such way.
        """
        _check_name("count_way", "way", way, get_args(Way))
        return sum(tensor.way == way for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain dicts, lists, numbers and strings, for JSON."""
        return {**asdict(self), "lazy_rate": self.lazy_rate}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plots the bytes of the model's parts by origin and, if traced, memory over time.

        Args:
            path: the file to write; its suffix selects the format (.png, .svg, .pdf, ...). None
                writes no file.

        Returns:
            The figure of matplotlib, which notebooks show.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no such format.
            OSError: the system cannot write the file.

        Example:
            >>> import pathlib, tempfile, torch, dormant
            >>> with dormant.lazy_init():
            ...     model = torch.nn.Linear(64, 64)
            >>> report = dormant.materialize(model, trace_memory=True)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     picture = pathlib.Path(folder, "report.svg")
            ...     figure = report.plot(picture)
            ...     picture.read_text().startswith("<?xml")
            True
        """
        return plot_report(self, path)

    def __repr__(self) -> str:
        """One line: the number of tensors, their bytes and their origins."""
        counts = ", ".join(
            f"{count} {origin}" for origin in get_args(Origin) if (count := self.count(origin))
        )
        return (
            f"Report({format_count(len(self.tensors), 'tensor')}, {format_bytes(self.nbytes)}"
            f"{': ' if counts else ''}{counts}; {self.seconds:.3f} s)"
        )

    def __str__(self) -> str:
        """Totals, and a short table with one line for each origin and dtype."""
        return format_table(_HEADER, *self._table())

    def _repr_html_(self) -> str:
        """The same table for notebooks."""
        return format_html_table(_HEADER, *self._table())

    def _table(self) -> tuple[list[Sequence[str]], list[str]]:
        groups: dict[tuple[Origin, str], list[TensorReport]] = {}
        for tensor in self.tensors:
            groups.setdefault((tensor.origin, tensor.dtype), []).append(tensor)
        rows: list[Sequence[str]] = [
            (
                origin,
                dtype,
                f"{len(group)}",
                format_bytes(sum(tensor.nbytes for tensor in group)),
                max(group, key=lambda tensor: tensor.nbytes).names[0],
            )
            for (origin, dtype), group in groups.items()
        ]
        totals = [
            f"{format_count(len(self.tensors), 'tensor')} in "
            f"{format_count(self.storages, 'storage')}, "
            f"{format_bytes(self.nbytes)}, {self.lazy_rate:.1%} of it lazy before",
            f"{format_count(self.operators, 'operator')}, {self.seconds:.3f} s"
            + (
                ""
                if self.peak_memory is None
                else f", peak memory {format_bytes(self.peak_memory)}"
            ),
        ]
        ways = [f"{count} {_WAYS[way]}" for way in get_args(Way) if (count := self.count_way(way))]
        if ways:
            totals.append(", ".join(ways))
        if self.random_path:
            totals.append(f"random numbers: {self.random_path}")
        if self.read_bytes:
            totals.append(
                f"{format_bytes(self.read_bytes)} from files, "
                f"{format_bytes(int(self.bytes_per_second))}/s; "
                f"{format_bytes(self.initialized_bytes)} initialized"
            )
        for title, names in (
            ("missing in the checkpoint", self.missing_keys),
            ("unexpected in the checkpoint", self.unexpected_keys),
            ("different shape in the checkpoint", [name for name, _, _ in self.mismatched_keys]),
        ):
            if names:
                shown = grouped(names)
                more = ", ..." if len(shown) > 5 else ""
                totals.append(f"{title}: {', '.join(map(printable, shown[:5]))}{more}")
        if self.value_reads:
            reads = sorted(self.value_reads.items(), key=lambda read: -read[1])
            totals.append(
                "values read while recording: "
                + ", ".join(f"{name} ({format_bytes(nbytes)})" for name, nbytes in reads)
            )
        return rows, totals


def _check_name(method: str, kind: str, name: object, known: tuple[str, ...]) -> None:
    if name in known:
        return
    near = get_close_matches(str(name), known, 1)
    raise ValueError(
        f"Report.{method}: {kind} {name!r}, expected one of {', '.join(map(repr, known))}."
        + (f" Did you mean {near[0]!r}?" if near else "")
    )


def with_memory_trace(report: Report, samples: Sequence[MemorySample]) -> Report:
    """The report with a timeline of memory; its peak memory is at least that of the timeline."""
    highest = [sample.resident for sample in samples]
    if report.peak_memory is not None:
        highest.append(report.peak_memory)
    return replace(
        report, memory_trace=tuple(samples), peak_memory=max(highest) if highest else None
    )
