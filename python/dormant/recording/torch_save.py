"""`torch.save` and `pickle` of lazy tensors: they write values, and the tensors stay lazy.

The values of each storage are computed when it is written, in memory that is freed before the next
one. Only `pickle` keeps all of them, because it makes one object of everything.

PyTorch opens the file that it saves to, and thereby empties it, before it reads the saved tensors.
Lazy tensors may be read from that very file, or may fail to materialize. As long as anything is
lazy, a new file is therefore written beside the old one, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dormant._extension import _C
from dormant.publication.publication import written_aside
from dormant.recording.patches import Patch, declare, uninstall_if_idle
from dormant.tensors.storage import is_lazy_storage, realize, realize_storage, unrecorded

Function = Callable[..., Any]


def _twin(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A separate storage with the values that a lazy storage will have."""
    twin = _C.clone_storage(_C.tensor_over(storage))
    realize(twin)
    return twin.untyped_storage()


class _Writer:
    """A writer of PyTorch's zip files that computes the values of a lazy storage when it writes it.

    Args:
        writer: PyTorch's own writer.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write_record(self, name: str, data: Any, *rest: Any) -> None:
        """Writes one record."""
        self._writer.write_record(name, _twin(data) if is_lazy_storage(data) else data, *rest)


def _is_replaced(target: Any) -> bool:
    """Whether `target` is the path of an existing file, which is replaced and not rewritten."""
    return (
        isinstance(target, str | os.PathLike)
        and Path(target).is_file()
        and os.access(Path(target).resolve().parent, os.W_OK)
        and _C.live_storages() > 0
    )


@contextlib.contextmanager
def _opened(original: Function, target: Any, *mode: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        if _is_replaced(target):
            target = str(stack.enter_context(written_aside(Path(target), "torch.save")))
        yield stack.enter_context(original(target, *mode))


def _write_zip(original: Function) -> Function:
    @functools.wraps(original)
    @contextlib.contextmanager
    def replacement(name_or_buffer: Any) -> Iterator[Any]:
        with _opened(original, name_or_buffer) as writer:
            yield _Writer(writer)

    return replacement


def _open_for_writing(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(name_or_buffer: Any, mode: str) -> Any:
        if "w" not in mode:
            return original(name_or_buffer, mode)
        return _opened(original, name_or_buffer, mode)

    return replacement


def _write_twin(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        storage = _twin(self) if is_lazy_storage(self) else self
        with unrecorded():
            return original(storage, *args, **kwargs)

    return replacement


def _identity_while_saving(original: Function) -> Function:
    # torch/serialization.py compares the pointers of storages to find equal ones.
    saving = vars(torch.serialization)

    @functools.wraps(original)
    def replacement(self: torch.UntypedStorage) -> Any:
        if is_lazy_storage(self):
            if sys._getframe(1).f_globals is saving:
                return self._cdata
            realize_storage(self)
        uninstall_if_idle()
        with unrecorded():
            return original(self)

    return replacement


declare(
    Patch(
        torch.serialization,
        "_open_zipfile_writer",
        "empties the file and writes storages through their pointers",
        _write_zip,
    ),
    Patch(
        torch.serialization,
        "_open_file_like",
        "empties the file that torch.save writes in its older layout",
        _open_for_writing,
    ),
    Patch(
        torch.UntypedStorage,
        "_write_file",
        "writes through the pointer; pickle and the older layout of torch.save call it",
        _write_twin,
    ),
    Patch(
        torch.UntypedStorage,
        "data_ptr",
        "reads the data pointer without any dispatched operator",
        _identity_while_saving,
    ),
)
