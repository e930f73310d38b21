"""The distinct tensors of an object, with all their names and the storages they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from dormant._extension import _C
from dormant.tensors.reachable import reachable_tensors


@dataclass
class InventoryEntry:
    """One distinct tensor: the same elements of the same storage, under all its names."""

    tensor: torch.Tensor
    names: list[str]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    storage: int
    lazy: bool


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
        """Bytes of those that have no memory."""
        return sum(self.storage_nbytes[storage] for storage in self.lazy_storages)


def take_inventory(roots: Iterable[tuple[str, object]]) -> Inventory:
    """Finds every tensor under the named roots.

    Args:
        roots: (name, object) pairs.

    Returns:
        The tensors in the order in which they are met.
    """
    # Subclasses may refuse even to tell their size: UninitializedParameter does.
    with torch._C.DisableTorchFunctionSubclass():
        return _take_inventory(roots)


def _take_inventory(roots: Iterable[tuple[str, object]]) -> Inventory:
    inventory = Inventory()
    known: set[int] = set()
    entries: dict[object, InventoryEntry] = {}
    for root_name, root in roots:
        for name, tensor in reachable_tensors(root, root_name):
            if id(tensor) not in known:
                known.add(id(tensor))
                inventory.objects.append(tensor)
            has_storage = owns_storage(tensor)
            storage = _C.storage_id(tensor) if has_storage else id(tensor)
            # A tensor without a storage of its own is what its parts are; they come by themselves.
            identity = _geometry(tensor, storage) if has_storage else storage
            entry = entries.get(identity)
            if entry is not None:
                if name not in entry.names:
                    entry.names.append(name)
                continue
            lazy = has_storage and _C.is_lazy(tensor)
            entry = InventoryEntry(
                tensor=tensor,
                names=[name],
                shape=sizes_of(tensor),
                dtype=str(tensor.dtype).removeprefix("torch."),
                nbytes=element_bytes(tensor),
                storage=storage,
                lazy=lazy,
            )
            entries[identity] = entry
            if is_wrapper(tensor):
                continue
            inventory.entries.append(entry)
            inventory.storage_nbytes.setdefault(
                storage, _C.storage_nbytes(tensor) if has_storage else element_bytes(tensor)
            )
            if lazy:
                inventory.lazy_storages.setdefault(storage, tensor)
    return inventory


def own_parameter(module: torch.nn.Module, name: str) -> torch.nn.Parameter | None:
    """The parameter that `module` itself has registered; None where it has none of that name.

    None also of TorchScript modules, whose parameters live in C++.
    """
    registry = module._parameters
    return registry.get(name) if isinstance(registry, dict) else None


def owns_storage(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is elements of a storage of its own; sparse and nested tensors are not."""
    return bool(torch._C._has_storage(tensor)) and not tensor.is_nested


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a subclass made of other tensors, as DTensor is."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(
        type(tensor), "__tensor_flatten__"
    )


def element_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements of `tensor`."""
    return tensor.numel() * tensor.element_size()


def sizes_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The sizes of `tensor`; of a nested tensor only how many tensors it holds."""
    return (tensor.size(0),) if tensor.is_nested else tuple(tensor.size())


def _geometry(tensor: torch.Tensor, storage: int) -> object:
    return (
        storage,
        tensor.dtype,
        tensor.storage_offset(),
        tuple(tensor.size()),
        tensor.stride(),
    )
