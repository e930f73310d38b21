"""Copies lazy tensors to another device while they are made, so that none is whole on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from dormant._extension import _C
from dormant.materialization.options import MaterializeOptions
from dormant.reporting.progress import Callback
from dormant.reporting.tally import Tally
from dormant.tensors.identity import identity, is_meta, owns_storage
from dormant.tensors.inventory import Inventory
from dormant.tensors.reachable import is_module
from dormant.tensors.shards import part_of

Note = Callable[[list[_C.MaterializedStorage]], object]


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
        place: the device; None makes no copies.
        wanted: the storages that get values.
    """

    def __init__(
        self,
        inventory: Inventory,
        module: torch.nn.Module,
        place: torch.device | None,
        wanted: Iterable[int],
    ) -> None:
        self._place = place
        self._copies: dict[object, torch.Tensor] = {}
        moved = {id(tensor) for tensor in _moved_by(module)} if place is not None else set()
        wanted = set(wanted)
        # What something else also holds stays on the CPU for it.
        self._tensors = {
            storage: tensors
            for storage, tensors in inventory.objects_by_storage().items()
            if place is not None
            and storage in wanted
            and all(id(each) in moved and can_be_copied(each, place) for each in tensors)
        }

    @property
    def storages(self) -> set[int]:
        """The storages of which everything is copied; they stay lazy."""
        return set(self._tensors)

    def make(self, options: MaterializeOptions, tally: Tally, note: Note) -> None:
        """Makes the copies. Raises as `copied` does; then nothing has changed."""
        assert self._place is not None or not self._tensors
        for tensors in self._tensors.values():
            for tensor in tensors:
                key = identity(tensor)
                if key not in self._copies:
                    on_step = tally.part(tensor.numel() * tensor.element_size())
                    self._copies[key] = copied(tensor, self._place, options, on_step, note)

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """What takes the place of `tensor`."""
        copy = self._copies.get(identity(tensor)) if self._copies else None
        return tensor.to(self._place) if copy is None else copy


def _moved_by(root: torch.nn.Module) -> Iterable[torch.Tensor]:
    """What `root.to` moves; of a sharded parameter, also the part."""
    for module in root.modules():
        for registry in (module._parameters, module._buffers):
            for tensor in registry.values() if isinstance(registry, dict) else ():
                if tensor is not None:
                    grad = tensor.grad if tensor.is_leaf else None
                    for each in (tensor, grad):
                        if each is not None:
                            part = part_of(each)
                            yield from (each,) if part is None else (each, part)
