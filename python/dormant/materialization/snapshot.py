"""Keeps the state of a module, so that work on it either succeeds or changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dormant._extension import _C
from dormant.quantization.layers import HeldQuantization
from dormant.ranks.recording import check_same_recording
from dormant.ranks.together import Together
from dormant.tensors.identity import owns_storage
from dormant.tensors.reachable import is_module, reachable_tensors
from dormant.tensors.shards import part_of, set_part, tell_fsdp


@dataclass
class _Tensor:
    """One tensor object, and an alias that keeps its previous state."""

    tensor: torch.Tensor
    alias: torch.Tensor
    version: int
    kind: type[torch.Tensor]


class HeldModule:
    """Holds a module's tensors as they are until `keep` or `restore`.

    Meanwhile, tensors that have memory become lazy, so that writes to them are only recorded.
    `_C.materialize(..., held=module.tensors)` then writes to the memory that they had.

    Args:
        module: the module.
        tensors: what `reachable_tensors` yields for it; None searches now.
        lazy_only: whether tensors that have memory are left alone.

    Attributes:
        tensors: the held storages, as the core knows them.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
        *,
        lazy_only: bool = False,
    ) -> None:
        self._registries: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (registry, dict(registry))
            for child in module.modules()
            for registry in (child._parameters, child._buffers)
            # Those of a TorchScript module are views of it, in which nothing can be exchanged.
            if isinstance(registry, dict)
        ]
        self._quantization = HeldQuantization(module)
        self._tensors: dict[int, _Tensor] = {}
        self._names: dict[int, list[str]] = {}  # by storage, which tied tensors and views share
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for name, tensor in reachable_tensors(module) if tensors is None else tensors:
                if not _can_be_held(tensor) or (lazy_only and not _C.is_lazy(tensor)):
                    continue
                self._names.setdefault(_C.storage_id(tensor), []).append(name)
                if id(tensor) not in self._tensors:
                    alias = tensor.detach()
                    # Inference tensors do not count versions.
                    version = 0 if tensor.is_inference() else tensor._version
                    self._tensors[id(tensor)] = _Tensor(tensor, alias, version, type(tensor))
        everything = [each for held in self._tensors.values() for each in (held.tensor, held.alias)]
        self.tensors = _C.HeldTensors(everything)
        self._sharded = [
            (parameter, part, parameter._spec)  # type: ignore[attr-defined]
            for parameter in module.parameters()
            if (part := part_of(parameter)) is not None
        ]
        self._module = module

    def partly_written(self) -> list[str]:
        """All names of tensors that had memory and were written to, completely or in part."""
        return sorted({name for storage in self.tensors.begun() for name in self._names[storage]})

    def prepare_to_keep(self) -> None:
        """Allocates what `keep` needs.

        Raises:
            MemoryError: memory is exhausted.
        """
        self.tensors.prepare_to_keep()

    def keep(self) -> None:
        """Keeps what was materialized; tensors that had memory get this memory again.

        Raises:
            MemoryError: there was no memory for a copy that was made meanwhile; all is restored.
        """
        try:
            self.tensors.keep()
        except MemoryError:
            self.restore()
            raise
        self._settle()

    def restore(self) -> None:
        """Restores everything, except for the contents of `partly_written`."""
        self.tensors.restore()
        for registry, before in self._registries:
            registry.clear()
            registry.update(before)
        changed = [each for each in self._sharded if part_of(each[0]) is not each[1]]
        for parameter, part, spec in changed:
            set_part(parameter, part, spec)
        tell_fsdp(self._module, (parameter for parameter, _, _ in changed))
        self._quantization.restore()
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for held in self._tensors.values():
                if not _same_geometry(held.tensor, held.alias):
                    held.tensor.data = held.alias
                if type(held.tensor) is not held.kind:  # an UninitializedParameter got a shape
                    held.tensor.__class__ = held.kind
                if not held.tensor.is_inference() and held.tensor._version != held.version:
                    torch._C._autograd._unsafe_set_version_counter((held.tensor,), (held.version,))
        self._settle()

    def _settle(self) -> None:
        for held in self._tensors.values():
            _C.settle(held.tensor)
            _C.settle(held.alias)


@contextlib.contextmanager
def all_or_nothing(roots: Iterable[tuple[str, object]], together: Together) -> Iterator[None]:
    """What is materialized while open stays so on all ranks or on none; no effect for one rank.

    Raises:
        ValueError: the ranks have recorded different values for the parts of one tensor.
        RuntimeError, OSError, MemoryError, ...: another rank failed.
    """
    modules = [root for _, root in roots if is_module(root)]
    if together.is_alone:
        yield
        return
    check_same_recording(modules, together)
    held = [HeldModule(module, lazy_only=True) for module in modules]
    try:
        yield
        for each in held:
            each.prepare_to_keep()
        together.conclude()
    except BaseException:
        for each in held:
            each.restore()
        raise
    for each in held:
        each.keep()


def _can_be_held(tensor: torch.Tensor) -> bool:
    return owns_storage(tensor) and tensor.device.type == "cpu" and not tensor.is_quantized


def _same_geometry(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        _C.storage_id(a) == _C.storage_id(b)
        and a.dtype is b.dtype
        and a.size() == b.size()
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )
