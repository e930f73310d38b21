"""Options that several operations share, and their checks; `operation` is for the message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch

from dormant.reporting.progress import Callback
from dormant.text.byte_count import parse_bytes

Mmap: TypeAlias = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class MaterializeOptions:
    """How tensors get their values; every option has been checked.

    Attributes:
        memory_budget: bytes that this may take besides the final tensors; None sets no limit.
        mmap: whether tensors that are bytes of a file and nothing else may map them in place.
        progress: True shows a bar, False none, None only if it is useful; a function is called.
        share_reads: whether ranks that need the same bytes of files read them once.
    """

    memory_budget: int | None = None
    mmap: Mmap = "auto"
    progress: bool | Callback | None = None
    share_reads: bool = False


def checked_options(
    operation: str,
    *,
    memory_budget: int | str | None = None,
    mmap: str = "auto",
    progress: bool | Callback | None = None,
    share_reads: bool = False,
) -> MaterializeOptions:
    """The options of an operation, as the user gave them.

    Raises:
        TypeError: an option has a type that cannot be used.
        ValueError: `memory_budget` is not a positive number of bytes, or `mmap` is unknown.
    """
    check_choice(mmap, ("auto", "always", "never"), "mmap", operation)
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(
            f"{operation}: progress must be True, False, None or a function of (done, total), got "
            f"{type(progress).__name__}."
        )
    if not isinstance(share_reads, bool):
        raise TypeError(
            f"{operation}: share_reads must be True or False, got {type(share_reads).__name__}."
        )
    return MaterializeOptions(
        check_memory_budget(memory_budget, operation), cast(Mmap, mmap), progress, share_reads
    )


def check_memory_budget(memory_budget: int | str | None, operation: str) -> int | None:
    """The number of bytes that `memory_budget` stands for; None if it sets no limit.

    Raises:
        TypeError: it is not a number, text or None.
        ValueError: it is text that is not a number of bytes, or less than one byte.
    """
    if memory_budget is None:
        return None
    if not isinstance(memory_budget, (int, str)) or isinstance(memory_budget, bool):
        raise TypeError(
            f"{operation}: memory_budget must be a number of bytes (int) or text like '2GiB', got "
            f"{type(memory_budget).__name__}."
        )
    found = parse_bytes(memory_budget) if isinstance(memory_budget, str) else memory_budget
    if found is None:
        raise ValueError(
            f"{operation}: memory_budget {memory_budget!r} is not a number of bytes. Expected text "
            "like '2GiB' or '500MB', or an int."
        )
    if found <= 0:
        raise ValueError(
            f"{operation}: memory_budget must be at least one byte, got {memory_budget}. "
            "Leave it out to set no bound."
        )
    return found


def check_dtype(dtype: torch.dtype | None, operation: str) -> None:
    """Raises TypeError or ValueError unless `module.to(dtype)` would accept it."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{operation}: dtype must be a torch.dtype, got {type(dtype).__name__}.")
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(
            f"{operation}: dtype converts parameters as module.to does, which takes floating-point "
            f"and complex dtypes only; got {dtype}."
        )


def check_choice(value: object, choices: tuple[str, ...], name: str, operation: str) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        expected = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{operation}: {name} must be one of {expected}; got {value!r}.")
