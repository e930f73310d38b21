"""The identity of tensors: when two names are tied, and what a tensor consists of."""

from __future__ import annotations

import torch

from dormant._extension import _C


def identity(tensor: torch.Tensor) -> object:
    """A hashable value that is equal for tied tensors: the same elements, read in the same way.

    Views with other elements, or with another shape, dtype or order, are different tensors, and so
    are conjugate and negated views. A tensor without its own storage (sparse, nested, made of other
    tensors, of unknown shape) is equal only to itself. The value is valid as long as the tensors
    exist.

    Example:
        >>> import torch
        >>> weight = torch.zeros(2, 2)
        >>> identity(weight) == identity(weight.detach()), identity(weight) == identity(weight.t())
        (True, False)
    """
    # Subclasses may refuse even to return their size, as UninitializedParameter does.
    with torch._C.DisableTorchFunctionSubclass():
        if is_wrapper(tensor) or not owns_storage(tensor) or torch.nn.parameter.is_lazy(tensor):
            return id(tensor)
        return (
            _C.storage_id(tensor),
            tensor.dtype,
            tensor.storage_offset(),
            tuple(tensor.size()),
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a subclass made of other tensors, as DTensor is."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(
        type(tensor), "__tensor_flatten__"
    )


def owns_storage(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has its own storage; sparse and nested tensors do not."""
    return bool(torch._C._has_storage(tensor)) and not tensor.is_nested


def is_meta(tensor: torch.Tensor) -> bool:
    """Whether `tensor` can never have values, because it is a meta tensor or a fake tensor."""
    if tensor.device.type == "meta":
        return True
    # A storage that Python has accessed counts as referenced elsewhere, and is materialized whole.
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return False
    return owns_storage(tensor) and tensor.untyped_storage().device.type == "meta"
