"""Failures on demand: the first, second, ... call of a kind fails (`_C.set_faults`)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import dormant
from compare import assert_same_bits, geometry, storage_key
from dormant import _C
from living import live_storages
from reachable import holdings

Kind = Literal["allocate", "read", "write"]

# Most faults of one sweep, evenly spread.
MOST = 6


def bits_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The values of all tensors that are real."""
    return {
        name: tensor.detach().clone()
        for name, tensor in holdings(model).tensors.items()
        if not dormant.is_lazy(tensor)
    }


def fingerprint(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Everything but values: objects, storages, histories, versions, geometry.

    The offset of a nested statistic is left out: saving needs its value.
    """
    return {
        name: (
            id(tensor),
            storage_key(tensor),
            tuple(_C.operators(tensor)) if dormant.is_lazy(tensor) else None,
            geometry(tensor),
        )
        for name, tensor in holdings(model).tensors.items()
        if not name.endswith("quant_state.offset")
    }


def assert_same_values(expected: nn.Module, got: nn.Module) -> None:
    one, other = holdings(expected).tensors, holdings(got).tensors
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert not dormant.is_lazy(other[name]), name
        assert_same_bits(tensor, other[name], name)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


def open_files() -> int | None:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else None


def assert_expected(error: BaseException, kind: Kind) -> None:
    """An error of the kind that the real failure would have caused."""
    if kind == "allocate":
        assert isinstance(error, (MemoryError, RuntimeError)), repr(error)
        assert isinstance(error, MemoryError) or "can't allocate memory" in str(error), repr(error)
    else:
        number = errno.EIO if kind == "read" else errno.ENOSPC
        assert isinstance(error, OSError), repr(error)
        assert error.errno == number, repr(error)


def sweep(
    kind: Kind,
    prepare: Callable[[], Any],
    attempt: Callable[[Any], object],
    check: Callable[[Any, BaseException | None], None],
    *,
    and_all_after: bool = False,
) -> int:
    """Attempts it with one fault after the other.

    Args:
        kind: what fails.
        prepare: makes what is worked on.
        attempt: the work.
        check: gets what `prepare` made and what `attempt` raised, None where it got through.
        and_all_after: whether what follows the n-th call fails, too.

    Returns:
        How many faults there were.
    """
    subject = prepare()
    _C.set_faults(f"{kind}:0")
    attempt(subject)
    calls = _C.set_faults("")[kind]
    check(subject, None)
    del subject
    live = live_storages()
    tried = sorted({1 + i * (calls - 1) // (MOST - 1) for i in range(MOST)}) if calls else []
    for n in tried:
        subject, caught = prepare(), None
        _C.set_faults(f"{kind}:{n}{'+' if and_all_after else ''}")
        try:
            attempt(subject)
        except (MemoryError, RuntimeError, OSError) as error:
            caught = error
        finally:
            _C.set_faults("")
        if caught is not None:
            assert_expected(caught, kind)
        try:
            check(subject, caught)
        except AssertionError as error:
            raise AssertionError(f"with {kind}:{n} of {calls}: {error}") from caught
        del subject, caught
    assert live_storages() == live
    return len(tried)


def named_as_written(error: BaseException, name: str) -> bool:
    _, _, names = str(error).partition("were written in whole or in part: ")
    return name.removeprefix(".") in names.rstrip("'\").").split(", ")
