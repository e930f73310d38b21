"""Deep copies of lazy tensors, which are also lazy."""

from __future__ import annotations

import copy
import copyreg
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import has_torch_function_unary

from dormant._extension import _C
from dormant.recording.patches import Patch, declare
from dormant.tensors.geometry import geometry_of, lay_out


def deepcopy_tensor(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """`Tensor.__deepcopy__` for a lazy leaf tensor, without running its history.

    Views of one storage become views of one copied storage, even if `memo` has the storage from a
    deep copy of the storage itself.
    """
    if id(tensor) in memo:
        known: torch.Tensor = memo[id(tensor)]
        return known
    with torch.no_grad():
        duplicate = lay_out(_flat_copy(tensor, memo), geometry_of(tensor))
        if type(tensor) is not torch.Tensor:
            duplicate = duplicate.as_subclass(type(tensor))
        if tensor.requires_grad:
            duplicate.requires_grad_()
        if tensor.grad is not None:
            duplicate.grad = copy.deepcopy(tensor.grad, memo)
        for slot in copyreg._slotnames(type(tensor)):  # type: ignore[attr-defined]
            if hasattr(tensor, slot):
                setattr(duplicate, slot, copy.deepcopy(getattr(tensor, slot), memo))
        duplicate.__dict__ = copy.deepcopy(tensor.__dict__, memo)
        memo[id(tensor)] = duplicate
        return duplicate


def _flat_copy(tensor: torch.Tensor, memo: dict[Any, Any]) -> torch.Tensor:
    # UntypedStorage.__deepcopy__ (torch/storage.py) keeps its copies under this key, by address.
    storages = memo.setdefault("torch", {})
    address = tensor.untyped_storage()._cdata
    if address not in storages:
        storages[address] = _C.clone_storage(tensor).untyped_storage()
    return _C.tensor_over(storages[address])


def _copy_lazily(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, memo: dict[int, Any]) -> Any:
        if not _C.is_lazy(self) or not self.is_leaf or has_torch_function_unary(self):
            return original(self, memo)
        return deepcopy_tensor(self, memo)

    return replacement


declare(
    Patch(
        torch.Tensor,
        "__deepcopy__",
        "copies the storage byte by byte; Parameter.__deepcopy__ clones, which is recorded",
        _copy_lazily,
    ),
)
