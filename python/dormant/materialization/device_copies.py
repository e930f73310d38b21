"""Moves lazy tensors to another device while they are made, so that none is whole on the CPU.

Packed weights are the exception: each is whole on the CPU, with its statistics, until it is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from dormant._extension import _C
from dormant.materialization.options import MaterializeOptions
from dormant.quantization.layers import QuantizedWeight, forget_sources, quantized_weights
from dormant.reporting.tally import Tally
from dormant.tensors.conversion import convert
from dormant.tensors.identity import identity, is_meta, owns_storage
from dormant.tensors.inventory import Inventory
from dormant.tensors.reachable import reachable_tensors
from dormant.tensors.shards import Conversion, part_of

Roots: TypeAlias = "Sequence[tuple[str, object]]"
Note: TypeAlias = "Callable[[list[_C.MaterializedStorage]], object]"


def copy_in_pieces(
    tensor: torch.Tensor,
    place: torch.device,
    options: MaterializeOptions,
    tally: Tally,
    note: Note,
) -> torch.Tensor:
    """A tensor on `place` with the values and the strides of `tensor`, which stays lazy."""
    destination = _destination(tensor, place)
    write_in_pieces(tensor, destination, options, tally, note)
    return destination


def write_in_pieces(
    tensor: torch.Tensor,
    destination: torch.Tensor,
    options: MaterializeOptions,
    tally: Tally,
    note: Note,
) -> None:
    """Writes a tensor of the CPU to one of a device; a lazy one stays lazy.

    If the destination has gaps, the lazy one is materialized, and then copied.
    """
    with torch.no_grad():
        if _C.is_lazy(tensor) and _meta_like(destination).stride() == destination.stride():
            on_step = tally.part(tensor.nbytes)
            budget = options.memory_budget
            note(_C.write_to_device(tensor.detach(), destination, on_step, budget))
        else:
            destination.copy_(tensor)


def _destination(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """Memory on the device, in the order in which `tensor.to` would have the elements."""
    return torch.empty_like(_meta_like(tensor), device=place)


def _meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """Without gaps and overlaps: then the strides are those of `tensor` only if it has none."""
    with torch.no_grad():
        detached = tensor.detach()
        meta = torch.empty_strided(
            detached.size(), detached.stride(), dtype=detached.dtype, device="meta"
        )
        return torch.empty_like(meta)


class DeviceCopies:
    """The copies that a device gets of lazy tensors, which stay lazy until `move`.

    A storage is copied if everything that refers to it moves, or is part of one packed weight.
    Otherwise it is left to others, who materialize it on the CPU.

    Args:
        roots: (name, object) pairs.
        inventory: their tensors.
        place: the device.
        wanted: the storages that get values.
        left_alone: storages that are on a device already, when `move` is called.
        options: how tensors get their values.
        tally: counts the bytes.
        note: takes how each storage was made.

    Attributes:
        storages: the storages that are copied.
    """

    def __init__(
        self,
        roots: Roots,
        inventory: Inventory,
        place: torch.device,
        wanted: Iterable[int],
        *,
        left_alone: Collection[int] = (),
        options: MaterializeOptions,
        tally: Tally,
        note: Note,
    ) -> None:
        self._roots = roots
        self._place = place
        self._left_alone = left_alone
        self._options = options
        self._tally = tally
        self._note = note
        self._copies: dict[object, torch.Tensor] = {}
        # Tensors that have memory, and their places on the device.
        self._reserved: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Tensors that are made together, by the identity of each of them.
        self._groups: dict[object, list[torch.Tensor]] = {}
        # An identity holds as long as the storage lives, which parameters exchange.
        self._aliases: list[torch.Tensor] = []
        self.storages: set[int] = set()
        if place.type == "cpu":
            return
        objects = inventory.objects_by_storage()
        left = dict.fromkeys(wanted)  # in the order of the files
        for weight in _packed_weights(roots):
            tensors, known = _parts_of(weight)
            storages = {_C.storage_id(tensor) for tensor in tensors}
            if storages <= left.keys() and known.issuperset(
                id(o) for s in storages for o in objects[s]
            ):
                self._add(tensors)
                for storage in storages:
                    del left[storage]
        moved = {id(tensor) for tensor in _moved(roots)}
        for storage in left:
            if all(id(each) in moved and _is_copied_in_pieces(each) for each in objects[storage]):
                for tensor in objects[storage]:
                    self._add([tensor])

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether `move` gives `tensor`, which is on the CPU, a copy that is made here."""
        return identity(tensor) in self._groups

    def make(self) -> None:
        """Makes all copies, and allocates what `move` will need, which then changes everything.

        Raises:
            ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt: as in `materialize`;
                the device may also be out of memory (torch.OutOfMemoryError).
        """
        if self._place.type == "cpu":
            return
        for key in self._groups:
            self._copy(key)
        seen = set(self._groups)
        for tensor in _everything_moved(self._roots):
            if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu":
                key = identity(tensor)
                if not owns_storage(tensor) or _C.storage_id(tensor) in self._left_alone:
                    continue
                if key not in seen:
                    seen.add(key)
                    self._reserved.append((tensor, _destination(tensor, self._place)))
                    self._keep_alive(tensor)

    def move(self, conversion: Conversion | None = None) -> None:
        """Moves everything to the device, as `module.to` does; makes copies that are not made yet.

        Args:
            conversion: moves one tensor by calling `tensor.to`; None: does only this.
        """
        with torch.no_grad():
            for tensor, destination in self._reserved:
                self._copies[identity(tensor)] = destination.copy_(tensor)
        # After `make`, only a device that is lost can fail from here on.
        with _Moving(self):
            convert(self._roots, conversion or (lambda tensor: tensor.to(self._place)))
            for weight in _packed_weights(self._roots):
                weight.format.move_statistics(weight.module, self._place)
        forget_sources(root for _, root in self._roots)

    def moved(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The copy of `tensor`; None if it is not copied here."""
        if tensor.device.type != "cpu":
            return None
        key = identity(tensor)
        return self._copy(key) if key in self._groups else self._copies.get(key)

    def _add(self, tensors: list[torch.Tensor]) -> None:
        self._groups.update((identity(tensor), tensors) for tensor in tensors)
        self.storages.update(_C.storage_id(tensor) for tensor in tensors)
        for tensor in tensors:
            self._keep_alive(tensor)

    def _keep_alive(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            self._aliases.append(tensor.detach())

    def _copy(self, key: object) -> torch.Tensor:
        if key not in self._copies:
            tensors = self._groups[key]
            with torch.no_grad(), torch.inference_mode(tensors[0].is_inference()):
                copies = self._whole(tensors) if len(tensors) > 1 else [self._in_pieces(*tensors)]
            self._copies.update(zip(map(identity, tensors), copies, strict=True))
        return self._copies[key]

    def _in_pieces(self, tensor: torch.Tensor) -> torch.Tensor:
        return copy_in_pieces(tensor, self._place, self._options, self._tally, self._note)

    def _whole(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """One pass makes them in separate memory of the CPU."""
        made = [_C.Twin(tensor).bytes for tensor in tensors]
        stands_for = {
            _C.storage_id(bytes_): _C.storage_id(tensor)
            for bytes_, tensor in zip(made, tensors, strict=True)
        }
        on_step = self._tally.part(sum(bytes_.numel() for bytes_ in made))
        budget, mmap = self._options.memory_budget, self._options.mmap
        done = _C.materialize(made, "exact", on_step, budget, mmap)
        for each in done:
            each["storage"] = stands_for[each["storage"]]
        self._note(done)
        return [
            bytes_.view(tensor.dtype)
            .as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
            .to(self._place)
            for bytes_, tensor in zip(made, tensors, strict=True)
        ]


class _Moving(TorchFunctionMode):
    """`tensor.to(place)` returns the copies, also if the class of a parameter calls it."""

    def __init__(self, copies: DeviceCopies) -> None:
        super().__init__()
        self._copies = copies

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        copy = self._copies.moved(args[0]) if func is torch.Tensor.to else None
        return func(*args, **(kwargs or {})) if copy is None else copy


def _is_copied_in_pieces(tensor: torch.Tensor) -> bool:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if not owns_storage(tensor) or is_meta(tensor) or not _C.is_lazy(tensor):
        return False
    return not (tensor.is_conj() or tensor.is_neg())


def _packed_weights(roots: Roots) -> Iterator[QuantizedWeight]:
    """The packed weights that this process has whole."""
    for _, root in roots:
        for weight in quantized_weights(root) if isinstance(root, torch.nn.Module) else ():
            if weight.is_whole:
                yield weight


def _parts_of(weight: QuantizedWeight) -> tuple[list[torch.Tensor], set[int]]:
    """The packed bytes and the statistics, and the identities of everything that refers to them."""
    held = weight.held
    assert held is not None
    parts = [held, *weight.format.statistics(weight.module)]
    return parts, {id(each) for each in (*parts, *vars(held).values())}


def _everything_moved(roots: Roots) -> Iterator[torch.Tensor]:
    yield from _moved(roots)
    for weight in _packed_weights(roots):
        for attributes, _ in weight.format.attributes(weight.module):
            yield from (tensor for _, tensor in reachable_tensors(attributes))


def _moved(roots: Roots) -> Iterator[torch.Tensor]:
    """What `module.to` moves, and each tensor outside of a module."""
    for name, root in roots:
        if isinstance(root, torch.nn.Module):
            yield from _moved_by(root)
        else:
            yield from (tensor for _, tensor in reachable_tensors(root, name))


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
