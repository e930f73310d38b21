"""`summary` says which tensors of a model are lazy, and how much memory it will take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dormant._extension import _C
from dormant.reporting.plot import plot_summary
from dormant.reporting.random_path import random_path
from dormant.reporting.rows import rows_of
from dormant.tensors.inventory import take_inventory
from dormant.tensors.targets import Target, roots_of
from dormant.text.table import (
    format_bytes,
    format_count,
    format_html_table,
    format_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = ("tensor", "shape", "dtype", "state", "bytes")


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a `Summary`.

    Attributes:
        names: every name that leads to it; tied tensors have several.
        shape: its sizes.
        dtype: its dtype as text, "float32".
        nbytes: bytes of its elements; 0 on the meta device.
        lazy: whether its storage has no memory yet.
        operators: recorded operators in the history of its storage; 0 if it is real.
        storage: identity of its storage, which is equal for views of one storage.
        meta: whether it is on the meta device, where it has no values and never gets any.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    lazy: bool
    operators: int
    storage: int
    meta: bool = False

    @property
    def state(self) -> str:
        """The state in the table: "lazy", "real" or "meta"."""
        return "lazy" if self.lazy else "meta" if self.meta else "real"


@dataclass(frozen=True, repr=False)
class Summary:
    """The tensors of a model; `str()` is a table.

    Attributes:
        tensors: every distinct tensor; tied tensors are listed once.
        bytes_now: bytes of the storages that have memory.
        bytes_after: bytes of all storages after everything is materialized.
        random_path: a description of the code that will draw random numbers on this machine; "" if
            no lazy tensor needs any.
    """

    tensors: list[TensorSummary]
    bytes_now: int
    bytes_after: int
    random_path: str = ""

    @property
    def lazy_rate(self) -> float:
        """Share of the bytes that have no memory yet; 1.0 if there are no bytes."""
        return 1.0 - self.bytes_now / self.bytes_after if self.bytes_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The whole summary as plain dicts, lists, numbers and strings, for JSON."""
        return {**asdict(self), "lazy_rate": self.lazy_rate}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plots the bytes of the model's parts: those that have memory, and those that will.

        Args:
            path: the file to write; its suffix selects the format (.png, .svg, .pdf, ...). None
                writes no file.

        Returns:
            The figure of matplotlib, which notebooks show.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no such format.
            OSError: the system cannot write the file.
        """
        return plot_summary(self, path)

    def __repr__(self) -> str:
        """One line: the number of tensors, how many are lazy, and the bytes now and later."""
        return f"Summary({self._totals()})"

    def __str__(self) -> str:
        """Totals, and a table with one line for each tensor; repeated layers share one."""
        return format_table(_HEADER, *self._table())

    def _repr_html_(self) -> str:
        """The same table for notebooks."""
        return format_html_table(_HEADER, *self._table())

    def _table(self) -> tuple[list[Sequence[str]], list[str]]:
        rows = rows_of(
            (
                tensor.names,
                ("x".join(map(str, tensor.shape)) or "scalar", tensor.dtype, tensor.state),
                (tensor.nbytes,),
            )
            for tensor in self.tensors
        )
        meta = sum(tensor.meta for tensor in self.tensors)
        totals = [self._totals()]
        if meta:
            totals.append(f"{format_count(meta, 'tensor')} on the meta device, without values")
        if self.random_path:
            totals.append(f"random numbers: {self.random_path}")
        return rows, totals

    def _totals(self) -> str:
        lazy = sum(tensor.lazy for tensor in self.tensors)
        return (
            f"{format_count(len(self.tensors), 'tensor')}, "
            f"{lazy} lazy ({self.lazy_rate:.1%} of the bytes); "
            f"{format_bytes(self.bytes_now)} now, "
            f"{format_bytes(self.bytes_after)} once materialized"
        )


def summary(target: Target) -> Summary:
    """Lists the tensors of `target`: whether they are lazy, and their bytes now and later.

    It materializes nothing.

    Args:
        target: a module, a tensor, a mapping such as a state dict or a `Checkpoint`, or an iterable
            of these. An iterator is consumed.

    Returns:
        Every distinct tensor, with totals.

    Raises:
        TypeError: `target` is none of these.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init():
        ...     model = torch.nn.Linear(1024, 1024, bias=False)
        >>> found = dormant.summary(model)
        >>> found.bytes_now, found.bytes_after
        (0, 4194304)
    """
    inventory = take_inventory(roots_of(target, "summary"))
    operators = {
        storage: len(_C.operators(tensor)) for storage, tensor in inventory.lazy_storages.items()
    }
    return Summary(
        tensors=[
            TensorSummary(
                names=tuple(entry.names),
                shape=entry.shape,
                dtype=entry.dtype,
                nbytes=entry.nbytes,
                lazy=entry.lazy,
                operators=operators.get(entry.storage, 0),
                storage=entry.storage,
                meta=entry.meta,
            )
            for entry in inventory.entries
        ],
        bytes_now=inventory.nbytes - inventory.lazy_nbytes,
        bytes_after=inventory.nbytes,
        random_path=random_path(inventory.lazy_storages.values()),
    )
