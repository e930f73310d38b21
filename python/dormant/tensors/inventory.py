"""The distinct tensors of an object, with all their names and the storages they share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from dormant._extension import _C
from dormant.tensors.identity import identity, is_meta, is_wrapper, owns_storage
from dormant.tensors.reachable import only_part, reachable_tensors


@dataclass
class InventoryEntry:
    """One distinct tensor: the same elements of the same storage, under all its names.

    Attributes:
        tensor: one of the objects that refer to it.
        names: every name that leads to it.
        shape: its sizes.
        dtype: its dtype as text, "float32".
        nbytes: bytes of its elements; 0 for meta tensors, which have none.
        storage: identity of its storage.
        lazy: whether the storage has no memory yet.
        meta: whether it can never have values.
        statistic: whether it is a lazy statistic of a quantized weight, besides the codes.
    """

    tensor: torch.Tensor
    names: list[str]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    storage: int
    lazy: bool
    meta: bool = False
    statistic: bool = False


@dataclass
class Inventory:
    """The tensors under an object.

    Attributes:
        objects: every tensor object once.
        entries: distinct tensors; objects that alias each other exactly share one.
        storage_nbytes: bytes of each distinct storage.
        lazy_storages: the storages that have no memory, each with a tensor over it.
    """

    objects: list[torch.Tensor] = field(default_factory=list)
    entries: list[InventoryEntry] = field(default_factory=list)
    storage_nbytes: dict[int, int] = field(default_factory=dict)
    lazy_storages: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all distinct storages."""
        return sum(self.storage_nbytes.values())

    @property
    def lazy_nbytes(self) -> int:
        """Bytes of the storages that have no memory."""
        return sum(self.storage_nbytes[storage] for storage in self.lazy_storages)

    def add(self, tensor: torch.Tensor, names: list[str]) -> InventoryEntry:
        """Adds a tensor that was not added before."""
        has_storage, storage = owns_storage(tensor), storage_of(tensor)
        meta = is_meta(tensor)
        lazy = has_storage and not meta and _C.is_lazy(tensor)
        entry = InventoryEntry(
            tensor=tensor,
            names=names,
            shape=sizes_of(tensor),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=0 if meta else element_bytes(tensor),
            storage=storage,
            lazy=lazy,
            meta=meta,
            statistic=lazy and _C.is_statistic(tensor),
        )
        self.entries.append(entry)
        if storage not in self.storage_nbytes:
            self.storage_nbytes[storage] = (
                entry.nbytes if meta or not has_storage else _C.storage_nbytes(tensor)
            )
        if lazy:
            self.lazy_storages.setdefault(storage, tensor)
        return entry

    def objects_by_storage(self) -> dict[int, list[torch.Tensor]]:
        """The objects over each storage, real or lazy."""
        found: dict[int, list[torch.Tensor]] = {}
        for tensor in self.objects:
            if owns_storage(tensor):
                found.setdefault(_C.storage_id(tensor), []).append(tensor)
        return found


def take_inventory(roots: Iterable[tuple[str, object]]) -> Inventory:
    """Finds every tensor under the named roots.

    A tensor that is the only part of another one, like the local part of a DTensor, has the name of
    the other. A view that only hooks hold, over a storage that the model also has, like the flat
    views of FSDP, is not a separate entry.

    Args:
        roots: (name, object) pairs.

    Returns:
        The tensors in the order in which they are found.
    """
    return inventory_of(found for name, root in roots for found in reachable_tensors(root, name))


def inventory_of(found: Iterable[tuple[str, torch.Tensor]]) -> Inventory:
    """The inventory of (name, tensor) pairs as `reachable_tensors` yields them."""
    inventory = Inventory()
    known: set[int] = set()
    entries: dict[object, InventoryEntry] = {}
    wholes: dict[int, str] = {}
    # Subclasses may refuse even to return their size, as UninitializedParameter does.
    with torch._C.DisableTorchFunctionSubclass():
        for path, tensor in found:
            if id(tensor) not in known:
                known.add(id(tensor))
                inventory.objects.append(tensor)
            name = wholes.get(id(tensor), path)
            part = only_part(tensor) if is_wrapper(tensor) else tensor
            if part is None:
                continue  # its parts are found separately
            key = identity(part)
            entry = entries.get(key)
            if entry is not None:
                if name not in entry.names and not _HELD_BY_HOOK.search(name):
                    entry.names.append(name)
                continue
            if part is not tensor:
                wholes[id(part)] = name  # it is found next
                continue
            if _OF_A_MESH.search(path):
                continue
            if _HELD_BY_HOOK.search(name) and (
                storage_of(tensor) in inventory.storage_nbytes or element_bytes(tensor) == 0
            ):
                continue
            entries[key] = inventory.add(tensor, [name])
    return inventory


# "_forward_pre_hooks[0].__self__._fsdp_param_groups[0]...." of a module or one of its parts.
_HELD_BY_HOOK = re.compile(r"(?:^|\.)_\w+_hooks\[")
# The mesh of a DTensor is not one of the model's tensors, although it may be lazy.
_OF_A_MESH = re.compile(r"\._spec\.mesh\.")


def own_parameter(module: torch.nn.Module, name: str) -> torch.nn.Parameter | None:
    """The parameter that `module` itself has registered under this name, or None.

    None also for TorchScript modules, whose parameters are in C++.
    """
    registry = module._parameters
    return registry.get(name) if isinstance(registry, dict) else None


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of the storage of `tensor`, or of `tensor` itself if it has no storage."""
    return _C.storage_id(tensor) if owns_storage(tensor) else id(tensor)


def element_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements of `tensor`."""
    return tensor.numel() * tensor.element_size()


def sizes_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The sizes of `tensor`; for a nested tensor, only the number of tensors in it."""
    return (tensor.size(0),) if tensor.is_nested else tuple(tensor.size())
