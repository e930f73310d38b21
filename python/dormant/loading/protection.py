"""Tensors that keep their values, whatever other code writes to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dormant._extension import _C
from dormant.tensors.identity import identity, is_wrapper, owns_storage


@dataclass
class _Held:
    """One tensor in its place, and an alias that keeps its previous state."""

    name: str | None
    module: torch.nn.Module
    registry: dict[str, Any]
    key: str
    tensor: torch.Tensor
    alias: torch.Tensor
    version: int

    def is_elsewhere(self) -> bool:
        return self.registry.get(self.key) is not self.tensor or (
            identity(self.tensor) != identity(self.alias)
        )

    def put_back(self) -> None:
        self.registry[self.key] = self.tensor
        if identity(self.tensor) != identity(self.alias):
            self.tensor.data = self.alias

    def settle(self) -> None:
        _C.settle(self.tensor)
        _C.settle(self.alias)
        if self.name is None or self.tensor.is_inference():
            return  # it counts as written to
        if self.tensor._version != self.version:
            torch._C._autograd._unsafe_set_version_counter((self.tensor,), (self.version,))


class Protection:
    """Keeps tensors of a module unchanged while other code runs.

    A lazy tensor is held by its history, and a real one by its memory, so nothing is copied. It
    does not matter how other code writes: through the tensor, `.data`, a view, a fused operator, or
    by replacing the tensor.

    Args:
        module: the module of the tensors.
        names: by id, the tensors to protect, each with its name if a write to it is to be reported,
            otherwise with None. They must live as long as this object.

    Attributes:
        written: what other code tried to write to, and the class of the module that has it.
    """

    def __init__(self, module: torch.nn.Module, names: Mapping[int, str | None]) -> None:
        self.module = module
        self.written: dict[str, str] = {}
        self._names = names

    @contextlib.contextmanager
    def around(self, module: torch.nn.Module) -> Iterator[None]:
        """Restores what is protected in `module` and its submodules when the context ends."""
        held = self._hold(module)
        if not held:
            yield
            return
        storages = _C.HeldTensors([each for one in held for each in (one.tensor, one.alias)])
        try:
            yield
        finally:
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                self._put_back(held, storages)

    def _hold(self, module: torch.nn.Module) -> list[_Held]:
        held = []
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for child in module.modules():
                registries: list[dict[str, Any]] = [child._parameters, child._buffers]
                for registry in registries:
                    if not isinstance(registry, dict):  # a TorchScript module has another type
                        continue
                    for key, tensor in registry.items():
                        if tensor is None or id(tensor) not in self._names:
                            continue
                        if not _can_be_held(tensor):
                            continue
                        version = 0 if tensor.is_inference() else tensor._version
                        name = self._names[id(tensor)]
                        alias = tensor.detach()
                        held.append(_Held(name, child, registry, key, tensor, alias, version))
        return held

    def _put_back(self, held: list[_Held], storages: _C.HeldTensors) -> None:
        touched = set(storages.touched())
        elsewhere = [one for one in held if one.is_elsewhere()]
        written = list(elsewhere)
        doubtful = []
        for one in held:
            if _C.storage_id(one.alias) in touched:
                if _C.is_lazy(one.alias):
                    written.append(one)
                else:  # it has been read, and perhaps written to afterwards
                    doubtful.append((one, _C.clone_storage(one.alias)))
        storages.restore()
        for one in elsewhere:
            one.put_back()
        for one in held:
            one.settle()
        for one, values in doubtful:
            before = _C.clone_storage(one.alias)
            _C.materialize([before], "exact", None)
            if not torch.equal(values, before):
                written.append(one)
        self.written |= {one.name: type(one.module).__name__ for one in written if one.name}


def _can_be_held(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and owns_storage(tensor)
        and not is_wrapper(tensor)
        and not tensor.is_quantized
    )
