"""Changes of dtype and device that keep identity exactly as `module.to` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from dormant.tensors.inventory import is_wrapper
from dormant.tensors.reachable import reachable_tensors

Conversion = Callable[[torch.Tensor], torch.Tensor]


def convert(roots: Iterable[tuple[str, object]], conversion: Conversion) -> None:
    """Applies `conversion` under `roots`, each tensor once, in place.

    In a module it reaches what `module.to` reaches: parameters (the objects stay), buffers
    (replaced by new objects), gradients. Tensors given outside a module stay the same objects.

    Args:
        roots: (name, object) pairs.
        conversion: maps a tensor to the converted one, or to itself.
    """
    for _, root in roots:
        if isinstance(root, torch.nn.Module):
            root._apply(conversion)  # type: ignore[no-untyped-call]
            continue
        done: set[int] = set()
        for _, tensor in reachable_tensors(root):
            if id(tensor) not in done:
                done.add(id(tensor))
                _replace(tensor, conversion)


def as_dtype(dtype: torch.dtype) -> Conversion:
    """The conversion of `module.to(dtype)`: floating point and complex tensors only."""

    def conversion(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() or tensor.is_complex() else tensor

    return conversion


def _replace(tensor: torch.Tensor, conversion: Conversion) -> None:
    with torch.no_grad():
        converted = conversion(tensor.detach())
        if converted.dtype is tensor.dtype and converted.device == tensor.device:
            return
        if is_wrapper(tensor):
            raise NotImplementedError(
                f"materialize: a {type(tensor).__name__} outside a module cannot change dtype or "
                "device in place. Pass the module that holds it, or convert it first with .to()."
            )
        tensor.data = converted
