"""Every Python function that dormant replaces, and why.

They are in place only while somebody in the process makes lazy tensors (`in_use`), or some are
alive. Each replacement looks first whether a lazy tensor is concerned, and otherwise calls the
original; so one that another library has wrapped meanwhile, and that therefore stays, does no harm.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.dlpack
from torch.distributed.tensor import DTensor
from torch.overrides import has_torch_function_unary
from torch.utils._device import _device_constructors

from dormant._extension import _C
from dormant.checkpoint.reading import in_this_thread, load_lazily, open_lazily
from dormant.recipes import reduce_tensor
from dormant.recording.dtensor_copies import copy_parts, keep_lazy_part
from dormant.recording.dtensor_operators import PartsFirst
from dormant.recording.duplicate import deepcopy_tensor
from dormant.recording.truncated_normal import (
    draws_plain_normals,
    fill_in_one_round,
    fill_in_tried_rounds,
    one_round_suffices,
)
from dormant.tensors.storage import is_lazy_storage, realize, realize_storage, unrecorded

Function = Callable[..., Any]


@dataclass(frozen=True)
class Patch:
    """One replaced function: `owner.name` becomes `wrap(original)`.

    `owner` is the name of a module ("module:Class" for a class in it) that not everybody imports:
    nothing is replaced in one that is not imported.
    """

    owner: Any
    name: str
    reason: str
    wrap: Callable[[Function], Function]


# --- what the replacements do -------------------------------------------------------------------


def _realize_tensor_first(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and _C.is_lazy(value):
                realize(value)
        uninstall_if_idle()
        return original(*args, **kwargs)

    return replacement


def _realize_nested(original: Function) -> Function:
    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if _C.is_lazy(value):
                realize(value)
        elif isinstance(value, (list, tuple)):
            for element in value:
                visit(element)

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        # A tensor by itself is a dispatched copy; only sequences are read behind the dispatcher.
        data = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, (list, tuple)):
            visit(data)
        return original(*args, **kwargs)

    return replacement


def _realize_storage_first(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if is_lazy_storage(value):
                realize_storage(value)
        uninstall_if_idle()
        with unrecorded():
            return original(*args, **kwargs)

    return replacement


def _set_to_memory(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not _C.recording() and not _C.carries_key(self):
            for value in (*args, *kwargs.values()):
                if is_lazy_storage(value):
                    realize_storage(value)
        return original(self, *args, **kwargs)

    return replacement


def _no_for_lazy_tensors(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return False if _C.is_lazy(self) else original(self, *args, **kwargs)

    return replacement


def _no_for_lazy_storages(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        return False if is_lazy_storage(self) else original(self, *args, **kwargs)

    return replacement


def _ask_a_real_tensor(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        _C.settle(self)
        if _C.carries_key(self):
            # Only the type, dtype and device of `self` count for what is created.
            stand_in = torch.tensor([], dtype=self.dtype, device=self.device)
            return original(stand_in.as_subclass(type(self)), *args, **kwargs)
        return original(self, *args, **kwargs)

    return replacement


def _copy_lazily(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, memo: dict[int, Any]) -> Any:
        if not _C.is_lazy(self) or not self.is_leaf or has_torch_function_unary(self):
            return original(self, memo)
        return deepcopy_tensor(self, memo)

    return replacement


def _reduce_to_recipe(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, proto: int) -> Any:
        return reduce_tensor(self) if _C.is_lazy(self) else original(self, proto)

    return replacement


def _record_the_rounds(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        tensor: torch.Tensor,
        mean: float,
        std: float,
        a: float,
        b: float,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        if (
            _C.is_lazy(tensor)
            and one_round_suffices(tensor, mean, std, a, b)
            and draws_plain_normals(original)
        ):
            return fill_in_one_round(tensor, mean, std, generator)
        # A generator of another device cannot be tried out: its position is not known.
        if _C.is_lazy(tensor) and _C.recording() and tensor.device.type == "cpu":
            return fill_in_tried_rounds(original, tensor, mean, std, a, b, generator)
        filled: torch.Tensor = original(tensor, mean, std, a, b, generator=generator)
        return filled

    return replacement


# --- the list -----------------------------------------------------------------------------------

_POINTER = "reads the data pointer without any dispatched operator"
_LEGACY_KEY = "derives a device from the dispatch keys and rejects ours"

PATCHES: tuple[Patch, ...] = (
    *(
        Patch(torch.Tensor, name, reason, _realize_tensor_first)
        for name, reason in (
            ("numpy", _POINTER),  # __array__ goes through it
            ("tolist", _POINTER),
            ("data_ptr", _POINTER),
            ("const_data_ptr", _POINTER),
            ("__dlpack__", _POINTER),  # torch.from_dlpack and numpy.from_dlpack ask for it
            ("apply_", _POINTER),
            ("map_", _POINTER),
            ("map2_", _POINTER),
            ("pin_memory", "allocates and copies through the data pointer"),
        )
    ),
    Patch(torch.utils.dlpack, "to_dlpack", _POINTER, _realize_tensor_first),
    Patch(torch, "to_dlpack", "the same function under its second name", _realize_tensor_first),
    Patch(
        torch.Tensor,
        "is_pinned",
        "asks the driver about the pointer; memory that is not there is not pinned",
        _no_for_lazy_tensors,
    ),
    Patch(
        torch.Tensor,
        "set_",
        "takes a lazy storage as an argument that no dispatch key tells; recorded inside a context",
        _set_to_memory,
    ),
    *(
        Patch(
            torch, name, "reads the tensors in a nested sequence with our key off", _realize_nested
        )
        for name in ("tensor", "as_tensor", "asarray")
    ),
    Patch(torch.Tensor, "new", _LEGACY_KEY, _ask_a_real_tensor),
    Patch(torch.Tensor, "new_tensor", _LEGACY_KEY, _ask_a_real_tensor),
    Patch(
        torch.Tensor,
        "__deepcopy__",
        "copies the storage byte by byte; Parameter.__deepcopy__ clones, which is recorded",
        _copy_lazily,
    ),
    Patch(
        torch.Tensor,
        "_reduce_ex_internal",
        "pickles the bytes of the storage: pickle, torch.save and copy.copy get the recipe",
        _reduce_to_recipe,
    ),
    *(
        Patch(torch.UntypedStorage, name, reason, _realize_storage_first)
        for name, reason in (
            ("data_ptr", _POINTER),
            ("__getitem__", _POINTER),  # tolist iterates
            ("__setitem__", _POINTER),
            ("copy_", _POINTER),  # clone and deepcopy of a storage go through it
            ("fill_", _POINTER),
            ("resize_", "copies the old bytes through the pointer"),
            ("_byteswap", _POINTER),
            ("_get_filename", _POINTER),
            ("_get_shared_fd", _POINTER),
            ("_share_fd_cpu_", "moves the bytes to shared memory; share_memory_ goes through it"),
            ("_share_filename_cpu_", "moves the bytes to shared memory"),
            ("_write_file", _POINTER),
            ("_to", _POINTER),  # float(), half() ... of a storage
            ("pin_memory", "allocates and copies through the data pointer"),
        )
    ),
    Patch(
        torch.UntypedStorage,
        "is_shared",
        "looks behind the pointer and aborts the process; what is not there is not shared",
        _no_for_lazy_storages,
    ),
    Patch(
        torch.UntypedStorage,
        "is_pinned",
        "asks the driver about the pointer; memory that is not there is not pinned",
        _no_for_lazy_storages,
    ),
    Patch(torch.storage.TypedStorage, "_getitem", _POINTER, _realize_storage_first),
    Patch(torch.storage.TypedStorage, "_setitem", _POINTER, _realize_storage_first),
    Patch(
        torch.nn.init,
        "_no_grad_trunc_normal_",
        "looks at the values after each round; records as many rounds as they need",
        _record_the_rounds,
    ),
    Patch(torch, "load", "reads into memory what is cast or cut next", load_lazily),
    *(
        Patch(module, "safe_open", "reads into memory what is cast or cut next", open_lazily)
        # For an import inside the context; safetensors' own load_file; and where an import before
        # has bound the name.
        for module in (
            "safetensors",
            "safetensors.torch",
            "transformers.modeling_utils",
            "accelerate.utils.modeling",
        )
    ),
    Patch(
        "transformers.core_model_loading",
        "spawn_materialize",
        "casts in threads of its own, which do not record",
        in_this_thread,
    ),
    Patch(
        DTensor,
        "copy_",
        "works on the parts with our key off (pythonFallback, aten/src/ATen/core/"
        "PythonFallbackKernel.cpp)",
        copy_parts,
    ),
    Patch(
        DTensor,
        "__torch_function__",
        "every other operator works on the parts with our key off, too",
        PartsFirst,
    ),
    Patch(
        "torch.distributed.checkpoint.filesystem",
        "_write_item",
        "pickles each tensor: others could not read a recipe",
        _realize_tensor_first,
    ),
    Patch(
        "torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam",
        "reset_sharded_param",
        "compares data pointers after each load_state_dict",
        keep_lazy_part,
    ),
)


# --- when they are in place ---------------------------------------------------------------------

# Held while the patches are put in place or taken away, and while the process forks: a child
# finds all of them or none. Reentrant: a garbage collection meanwhile may end a context.
_lock = threading.RLock()
_users = 0
_installed: list[tuple[Patch, Function, Function | None]] = []
_waiting: list[Patch] = []  # for what is not imported yet, or not in this release

os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keeps the patches in place while open, and afterwards until no lazy tensor is left.

    Whoever makes lazy tensors, a context or a checkpoint, does it in here: then another thread that
    materializes the last one meanwhile does not take the patches away. Any thread; it nests.
    """
    global _users
    with _lock:
        _users += 1
    try:
        _install()
        yield
    finally:
        with _lock:
            _users -= 1
        uninstall_if_idle()


def _install() -> None:
    """Puts in place what is not."""
    with _lock:
        if not _installed:
            # `torch.device` as a context keeps a list of the functions that make tensors from its
            # first use on (torch/utils/_device.py): it must be of the originals.
            _device_constructors()
            _waiting[:] = PATCHES
        for patch in list(_waiting):
            owner = _owner(patch)
            original = getattr(owner, patch.name, None)
            if original is None:
                continue
            _waiting.remove(patch)
            replacement = patch.wrap(original)
            own = vars(owner).get(patch.name)
            setattr(owner, patch.name, replacement)
            _installed.append((patch, replacement, own))


def _owner(patch: Patch) -> Any:
    if not isinstance(patch.owner, str):
        return patch.owner
    module, _, name = patch.owner.partition(":")
    found = sys.modules.get(module)
    return getattr(found, name, None) if name else found


def installed() -> list[Patch]:
    """The patches in place now."""
    with _lock:
        return [patch for patch, _, _ in _installed]


def uninstall_if_idle() -> None:
    """Takes the patches away where nobody uses them and no lazy tensor is alive."""
    if not _installed or _users or _C.live_storages():
        return  # the usual case, seen without the lock
    with _lock:
        if _users or _C.live_storages():
            return
        while _installed:
            patch, replacement, own = _installed.pop()
            owner = _owner(patch)
            if owner is None or vars(owner).get(patch.name) is not replacement:
                continue  # wrapped by someone else meanwhile, who still calls ours
            if own is None:
                delattr(owner, patch.name)  # it was inherited
            else:
                setattr(owner, patch.name, own)
