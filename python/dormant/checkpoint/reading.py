"""`safetensors.safe_open` and `torch.load` inside the context: their tensors stay in the file.

Every library that reads checkpoints through them therefore reads lazily. Casting, slicing and
concatenating is recorded, and each element is read once, when the result is materialized.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from dormant._extension import _C
from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.torch_file import read_objects
from dormant.recording.patches import Patch, declare
from dormant.tensors.storage import realize

Function = Callable[..., Any]

# Tensors that are not floating point are often read without an operator (states of generators, text
# as bytes). Up to this size, they are not made lazy.
_READ_AT_ONCE = 64 << 10


def open_lazily(original: Function) -> Function:
    """`safetensors.safe_open`, whose tensors are lazy if the thread records."""

    @functools.wraps(original, updated=())
    def replacement(filename: Any, framework: str, device: Any = "cpu", **options: Any) -> Any:
        opened = original(filename, framework, device, **options)
        if not _C.recording() or framework not in ("pt", "torch", "pytorch") or not _is_cpu(device):
            return opened
        if isinstance(opened, LazyFile):  # a module imported inside the context keeps our function
            return opened

        try:
            return LazyFile(opened, open_checkpoint(filename, decode=False))
        except (NotImplementedError, ValueError):  # a dtype that we lack; safetensors checked it
            return opened

    return replacement


class LazyFile:
    """A safetensors file as `safe_open` shows it.

    Args:
        opened: the result of `safe_open`, which answers everything except the data of tensors.
        tensors: the lazy tensors by name.
    """

    def __init__(self, opened: Any, tensors: Any) -> None:
        self._opened = opened
        self._tensors = tensors
        self._given: set[str] = set()

    def __enter__(self) -> LazyFile:
        self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A lazy tensor, which gets its own memory when it is materialized."""
        if name not in self._tensors:
            tensor: torch.Tensor = self._opened.get_tensor(name)  # an error that names the others
            return tensor
        tensor = self._tensors[name]
        if not tensor.is_inference():  # such a tensor counts nothing
            # Unlike tensors of torch.load, those of safetensors start at version 0.
            torch._C._autograd._unsafe_set_version_counter((tensor,), (0,))
        if name in self._given:
            tensor = tensor.clone()
        self._given.add(name)
        return _read_if_small(tensor)[...]  # a view, as safetensors' own

    def get_tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, in the order of the file."""
        return {name: self.get_tensor(name) for name in self._opened.offset_keys()}

    def get_slice(self, name: str) -> LazySlice:
        """The tensor, which can be indexed to take a part."""
        return LazySlice(self, name)


class LazySlice:
    """A tensor of a safetensors file as `get_slice` shows it."""

    def __init__(self, file: LazyFile, name: str) -> None:
        self._file = file
        self._name = name
        self._slice = file._opened.get_slice(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slice, name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        whole = self._file.get_tensor(self._name)
        if index is Ellipsis:
            return whole
        part = whole[index]
        # A view of the whole tensor would materialize all of it.
        return part if part.shape == whole.shape else part.clone()[...]


def load_lazily(original: Function) -> Function:
    """`torch.load` of a path, whose tensors are lazy if the thread records."""

    @functools.wraps(original)
    def replacement(
        f: Any,
        map_location: Any = None,
        pickle_module: Any = None,
        *,
        weights_only: bool | None = None,
        mmap: bool | None = None,
        **options: Any,
    ) -> Any:
        if (
            _C.recording()
            and isinstance(f, (str, os.PathLike))
            and pickle_module is None
            and weights_only is not False
            and not options
            and _makes_memory()
        ):
            try:
                return read_objects(
                    _C.File(os.fspath(f)),
                    _read_if_small,
                    lambda location: _is_for_cpu(location, map_location),
                )
            except (NotImplementedError, OSError, ValueError):
                pass  # PyTorch reads it, or says why not
        return original(
            f, map_location, pickle_module, weights_only=weights_only, mmap=mmap, **options
        )

    return replacement


def in_this_thread(original: Function) -> Function:
    """Transformers' `spawn_materialize` in this thread: other threads are not recorded."""

    @functools.wraps(original)
    def replacement(thread_pool: Any, *args: Any, **kwargs: Any) -> Any:
        return original(None if _C.recording() else thread_pool, *args, **kwargs)

    return replacement


def _is_cpu(device: Any) -> bool:
    if isinstance(device, str):
        return device == "cpu"
    return isinstance(device, torch.device) and device.type == "cpu"


def _is_for_cpu(location: str, map_location: Any) -> bool:
    """Whether `torch.load` puts on the CPU what was saved from `location`.

    False if this is not known, as for functions.
    """
    if isinstance(map_location, dict):
        return bool(dict.get(map_location, location, location) == "cpu")
    return str(location if map_location is None else map_location) == "cpu"


def _makes_memory() -> bool:
    """Whether `torch.load` reads values, and does not make fake tensors or skip the data."""
    return (
        torch._guards.detect_fake_mode(None) is None
        and not torch.serialization._serialization_tls.skip_data
    )


def _read_if_small(tensor: torch.Tensor) -> torch.Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.nbytes <= _READ_AT_ONCE:
        realize(tensor)
    return tensor


_IN_MEMORY = "reads tensors into memory before they are cast or cut"

declare(
    Patch(torch, "load", _IN_MEMORY, load_lazily),
    *(
        Patch(module, "safe_open", _IN_MEMORY, open_lazily)
        # For an import inside the context; for safetensors' own load_file; and for modules that
        # imported the name before.
        for module in (
            "safetensors",
            "safetensors.torch",
            "transformers.modeling_utils",
            "accelerate.utils.modeling",
            "accelerate.utils.offload",
        )
    ),
    Patch(
        "transformers.core_model_loading",
        "spawn_materialize",
        "casts in its own threads, which do not record",
        in_this_thread,
    ),
)
