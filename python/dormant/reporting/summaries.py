"""`summary`: what of a model is lazy, and what it will take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dormant._extension import _C
from dormant.reporting.plot import plot_summary
from dormant.tensors.inventory import take_inventory
from dormant.tensors.targets import Target, roots_of
from dormant.text.table import (
    format_bytes,
    format_count,
    format_html_table,
    format_names,
    format_table,
)

_HEADER = ("tensor", "shape", "dtype", "bytes", "state")


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a `Summary`.

    Attributes:
        names: every name that leads to it; tied tensors have several.
        shape: its sizes.
        dtype: its dtype as text, "float32".
        nbytes: bytes of its elements; 0 on the meta device.
        lazy: whether its storage has no memory yet.
        operators: recorded operators in the history of its storage; 0 where it is real.
        storage: identity of its storage: equal for views of one storage.
        meta: whether it is on the meta device: it has no values and never gets any.
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
        """What the table says: "real", "meta", or how many operators are recorded."""
        if self.lazy:
            return format_count(self.operators, "operator")
        return "meta" if self.meta else "real"


@dataclass(frozen=True, repr=False)
class Summary:
    """What a model holds; `str()` is a table.

    Attributes:
        tensors: every distinct tensor, tied ones once.
        bytes_now: bytes of the storages that have memory.
        bytes_after: bytes of all storages once everything is materialized.
        random_path: which code will draw PyTorch's random numbers on this machine, in words.
    """

    tensors: list[TensorSummary]
    bytes_now: int
    bytes_after: int
    random_path: str = ""

    @property
    def lazy_rate(self) -> float:
        """Share of the bytes that has no memory yet; 1.0 where there are no bytes."""
        return 1.0 - self.bytes_now / self.bytes_after if self.bytes_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The whole summary in plain dicts, lists, numbers and strings, as for JSON."""
        return {**asdict(self), "lazy_rate": self.lazy_rate}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the bytes of the model's parts: those that have memory, and those that will.

        Args:
            path: the picture to write; its suffix chooses the format (.png, .svg, .pdf, ...).

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no such format.
            OSError: the system refused to write.
        """
        plot_summary(self, path)

    def __repr__(self) -> str:
        """One line: how many tensors, how many lazy, the bytes now and after."""
        return f"Summary({self._totals()})"

    def __str__(self) -> str:
        """A table: one line for each tensor, then totals."""
        return format_table(_HEADER, *self._table())

    def _repr_html_(self) -> str:
        """The same as notebooks show it."""
        return format_html_table(_HEADER, *self._table())

    def _table(self) -> tuple[list[Sequence[str]], list[str]]:
        rows: list[Sequence[str]] = [
            (
                format_names(tensor.names),
                "x".join(map(str, tensor.shape)) or "scalar",
                tensor.dtype,
                format_bytes(tensor.nbytes),
                tensor.state,
            )
            for tensor in self.tensors
        ]
        meta = sum(tensor.meta for tensor in self.tensors)
        footer = [self._totals()]
        if meta:
            footer.append(f"{format_count(meta, 'tensor')} on the meta device, without values")
        if any(tensor.lazy for tensor in self.tensors):
            footer.append(f"random numbers: {self.random_path}")
        return rows, footer

    def _totals(self) -> str:
        lazy = sum(tensor.lazy for tensor in self.tensors)
        return (
            f"{format_count(len(self.tensors), 'tensor')}, "
            f"{lazy} lazy ({self.lazy_rate:.1%} of the bytes); "
            f"{format_bytes(self.bytes_now)} now, "
            f"{format_bytes(self.bytes_after)} once materialized"
        )


def summary(target: Target) -> Summary:
    """Lists what `target` holds: what is lazy, the bytes it takes now and will take.

    Nothing is materialized by it.

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
        random_path=_C.exact_path(),
    )
