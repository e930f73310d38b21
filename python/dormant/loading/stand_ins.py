"""Real tensors of a model on other devices: during a load, lazy ones on the CPU stand in for them.

So nothing is written to the device before everything has been checked, and nothing by a dry run.
The parameters themselves are left alone: whoever refers to them (an optimizer, hooks of gradients)
does not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from dormant._extension import _C
from dormant.materialization.device_copies import Note, copy_in_pieces, write_in_pieces
from dormant.materialization.options import MaterializeOptions
from dormant.reporting.tally import Tally
from dormant.tensors.identity import owns_storage
from dormant.tensors.inventory import Inventory


@dataclass(eq=False)
class _StandIn:
    tensor: torch.Tensor
    original: torch.Tensor
    version: int
    # Where modules have it: the registry, the name there, and the name in the model.
    slots: list[tuple[dict[str, Any], str, str]] = field(default_factory=list)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was written to it, and it was not converted."""
        return not self.tensor.is_inference() and self.tensor._version == self.version

    @property
    def is_as_original(self) -> bool:
        """Whether the original can take the values."""
        one, other = self.tensor, self.original
        return one.dtype is other.dtype and one.shape == other.shape


class StandIns:
    """The model has stand-ins inside the context; afterwards, it has its own tensors again.

    A stand-in reads the memory of the device if its values are needed.

    Args:
        model: the model.

    Attributes:
        storages: the storages of the stand-ins.
        own_storages: those on the devices.
        nbytes: the bytes of the tensors on the devices.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.storages: set[int] = set()
        self.own_storages: set[int] = set()
        self._stand_ins: dict[int, _StandIn] = {}
        memory: dict[int, torch.Tensor] = {}
        for prefix, module in model.named_modules():
            for registry in (module._parameters, module._buffers):
                # Those of a TorchScript module are views of it, in which nothing can be exchanged.
                for name, tensor in registry.items() if isinstance(registry, dict) else ():
                    if tensor is None or not _can_be_replaced(tensor):
                        continue
                    if id(tensor) not in self._stand_ins:
                        self._stand_ins[id(tensor)] = self._of(tensor, memory)
                    full_name = f"{prefix}.{name}" if prefix else name
                    self._stand_ins[id(tensor)].slots.append((registry, name, full_name))
        self.nbytes = sum(each.original.nbytes for each in self._stand_ins.values())

    def _of(self, tensor: torch.Tensor, memory: dict[int, torch.Tensor]) -> _StandIn:
        storage = _C.storage_id(tensor)
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            if storage not in memory:
                memory[storage] = _C.read_of(_C.tensor_over(tensor.untyped_storage()))
            values = _C.view_as(
                memory[storage],
                tensor.dtype,
                tensor.size(),
                tensor.stride(),
                int(tensor.storage_offset()),
            )
            if isinstance(tensor, torch.nn.Parameter):
                values = torch.nn.Parameter(values, requires_grad=tensor.requires_grad)
            vars(values).update(vars(tensor))
        self.own_storages.add(storage)
        self.storages.add(_C.storage_id(values))
        return _StandIn(values, tensor, 0 if values.is_inference() else values._version)

    def __enter__(self) -> StandIns:
        for stand_in in self._stand_ins.values():
            for registry, name, _ in stand_in.slots:
                registry[name] = stand_in.tensor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Gives the model its own tensors again; what a module has replaced itself stays."""
        for stand_in in self._stand_ins.values():
            for registry, name, _ in stand_in.slots:
                if registry.get(name) is stand_in.tensor:
                    registry[name] = stand_in.original
        self._stand_ins.clear()  # a lazy tensor that is alive keeps Dormant's patches in place

    def count_as_real(self, inventory: Inventory) -> None:
        """Marks the stand-ins in an inventory as tensors that have memory."""
        for entry in inventory.entries:
            entry.lazy = entry.lazy and entry.storage not in self.storages
        for storage in self.storages:
            inventory.lazy_storages.pop(storage, None)

    def current_storages(self) -> set[int]:
        """The storages that stand for memory of the devices, after conversions of the model."""
        return {
            _C.storage_id(current)
            for stand_in in self._stand_ins.values()
            for registry, name, _ in stand_in.slots
            if isinstance(current := registry.get(name), torch.Tensor) and owns_storage(current)
        }

    def write(
        self, options: MaterializeOptions, tally: Tally, note: Note, written: list[str]
    ) -> list[Callable[[], None]]:
        """Writes to the devices what the model has taken.

        Args:
            options: how tensors get their values.
            tally: counts the bytes.
            note: takes how each storage was made.
            written: gets the names of each tensor before it is written to.

        Returns:
            What remains to be called before `leave`; it cannot fail.

        Raises:
            ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt: as in `load`.
        """
        exchanges: list[Callable[[], None]] = []

        def copied(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
            return copy_in_pieces(tensor, place, options, tally, note)

        in_place: list[_StandIn] = []
        for stand_in in self._stand_ins.values():
            place = stand_in.original.device
            for registry, name, _ in stand_in.slots:
                current = registry.get(name)
                # A converted buffer is another object, and modules may replace what they have.
                if isinstance(current, torch.Tensor) and current is not stand_in.tensor:
                    if current.device.type == "cpu":
                        copy = copied(current, place)
                        exchanges.append(_replace(registry, name, current, copy))
                elif current is not None and stand_in not in in_place:
                    in_place.append(stand_in)
        for stand_in in tuple(in_place):
            if not stand_in.is_as_original:
                copy = copied(stand_in.tensor, stand_in.original.device)
                exchanges.append(_exchange(stand_in.original, copy))
                in_place.remove(stand_in)
        for stand_in in in_place:
            if not stand_in.is_untouched:
                original = stand_in.original
                written += [name for _, _, name in stand_in.slots]
                write_in_pieces(stand_in.tensor, original.detach(), options, tally, note)
                if not original.is_inference():
                    torch.autograd.graph.increment_version(original)
        return exchanges


def _can_be_replaced(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type not in ("cpu", "meta")
        and owns_storage(tensor)
        and tensor.numel() > 0
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _exchange(tensor: torch.Tensor, values: torch.Tensor) -> Callable[[], None]:
    def exchange() -> None:
        tensor.data = values

    return exchange


def _replace(
    registry: dict[str, Any], name: str, current: torch.Tensor, copy: torch.Tensor
) -> Callable[[], None]:
    def replace() -> None:
        if isinstance(current, torch.nn.Parameter):
            current.data = copy
        else:
            registry[name] = copy

    return replace
