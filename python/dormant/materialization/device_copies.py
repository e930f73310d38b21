"""Copies lazy tensors to another device while they are made, so that none is whole on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch

from dormant._extension import _C
from dormant.materialization.options import MaterializeOptions
from dormant.reporting.progress import Callback
from dormant.reporting.tally import Tally
from dormant.tensors.identity import identity, is_meta, owns_storage
from dormant.tensors.inventory import Inventory
from dormant.tensors.shards import part_of

Note: TypeAlias = "Callable[[list[_C.MaterializedStorage]], object]"


def can_be_copied(tensor: torch.Tensor, place: torch.device) -> bool:
    """Whether `copied` can make this tensor on `place`.

    Packed weights cannot be copied so: their class moves their statistics with them, so they are
    made on the CPU, where they are whole, but small.
    """
    if place.type == "cpu" or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if not owns_storage(tensor) or is_meta(tensor) or not _C.is_lazy(tensor):
        return False
    return not (tensor.is_conj() or tensor.is_neg())


def copied(
    tensor: torch.Tensor,
    place: torch.device,
    options: MaterializeOptions,
    on_step: Callback,
    note: Note,
) -> torch.Tensor:
    """A tensor on `place` with the values and the strides of `tensor`, which stays lazy.

    Args:
        tensor: a lazy tensor that can be copied.
        place: the device.
        options: how tensors get their values.
        on_step: is called with (done, total) bytes.
        note: takes how the storage was made.

    Raises:
        ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt: as in `materialize`; the
            device may also be out of memory (torch.OutOfMemoryError).
    """
    with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
        detached = tensor.detach()
        strides = torch.empty_strided(
            detached.size(), detached.stride(), dtype=detached.dtype, device="meta"
        )
        destination = torch.empty_like(strides, device=place)
        note(_C.write_to_device(detached, destination, on_step, options.memory_budget))
    return destination


class DeviceCopies:
    """The copies of what a module moves to a device, made before anything in the module changes.

    Args:
        inventory: the tensors of the module.
        module: the module.
        place: the device.
        wanted: the storages that get values.

    Attributes:
        storages: the storages of which everything is copied; they stay lazy.
    """

    def __init__(
        self,
        inventory: Inventory,
        module: torch.nn.Module,
        place: torch.device,
        wanted: Iterable[int],
    ) -> None:
        self._place = place
        self._copies: dict[object, torch.Tensor] = {}
        moved = {id(tensor) for tensor in _moved_by(module)}
        objects = inventory.objects_by_storage()
        # If something else holds a storage, too, that stays on the CPU for it.
        self._tensors = [
            tensor
            for storage in wanted
            if all(id(each) in moved and can_be_copied(each, place) for each in objects[storage])
            for tensor in objects[storage]
        ]
        self.storages = {_C.storage_id(tensor) for tensor in self._tensors}

    def make(self, options: MaterializeOptions, tally: Tally, note: Note) -> None:
        """Makes the copies. Raises as `copied` does; then nothing has changed."""
        for tensor in self._tensors:
            key = identity(tensor)
            if key not in self._copies:
                on_step = tally.part(tensor.numel() * tensor.element_size())
                self._copies[key] = copied(tensor, self._place, options, on_step, note)

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """What takes the place of `tensor`."""
        copy = self._copies.get(identity(tensor))
        return tensor.to(self._place) if copy is None else copy


def _moved_by(root: torch.nn.Module) -> Iterator[torch.Tensor]:
    """What `root.to` moves; of a sharded parameter, its part."""
    for module in root.modules():
        for registry in (module._parameters, module._buffers):
            for tensor in registry.values() if isinstance(registry, dict) else ():
                if tensor is not None:
                    yield _part_or_all(tensor)
                    if tensor.is_leaf and tensor.grad is not None:
                        yield _part_or_all(tensor.grad)


def _part_or_all(tensor: torch.Tensor) -> torch.Tensor:
    part = part_of(tensor)
    return tensor if part is None else part
