"""Converts sharded parameters (DTensor) in place.

`Module._apply` exchanges such a parameter for another one (torch.utils.swap_tensors), which fails
if anything else refers to it, and cannot be undone. Here, the parameter object stays, and lazy
parts stay lazy: the local part is converted, and the wrapper is updated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from dormant.tensors.identity import is_wrapper

Conversion = Callable[[torch.Tensor], torch.Tensor]


def part_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """This rank's part of a DTensor; None if `tensor` is not a DTensor."""
    part = getattr(tensor, "_local_tensor", None) if is_wrapper(tensor) else None
    return part if isinstance(part, torch.Tensor) else None


def replace_values(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Gives `parameter` the values of `whole`; a DTensor gets this rank's part of them.

    Raises:
        ValueError: a DTensor has another dtype or shape than `whole`.
    """
    if part_of(parameter) is None:
        parameter.data = whole
        return
    if parameter.dtype is not whole.dtype or parameter.shape != whole.shape:
        raise ValueError(
            f"load: got {whole.dtype} of shape {list(whole.shape)} for a sharded parameter of "
            f"{parameter.dtype} and shape {list(parameter.shape)}. Load first, then shard."
        )
    with torch.no_grad():
        parameter.copy_(whole)


def apply_sharded(root: torch.nn.Module, conversion: Conversion) -> bool:
    """`root._apply(conversion)` for a module with sharded parameters.

    Returns:
        False if no parameter is sharded; nothing is changed then.
    """
    if not any(part_of(parameter) is not None for parameter in root.parameters()):
        return False
    changed: list[torch.Tensor] = []
    for module in root.modules():
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()
        own = module._parameters
        order = list(own)
        sharded = {
            name: parameter
            for name, parameter in own.items()
            if parameter is not None and part_of(parameter) is not None
        }
        for parameter in sharded.values():
            changed += [each for each in _with_grad(parameter) if _convert(each, conversion)]
        for name in sharded:
            del own[name]
        try:
            # FSDP's own _apply would need the sharded parameters.
            torch.nn.Module._apply(module, conversion, recurse=False)  # type: ignore[no-untyped-call]
        finally:
            rest = dict(own)
            own.clear()
            own.update((name, sharded.get(name, rest.get(name))) for name in order)
    tell_fsdp(root, changed)
    return True


def _with_grad(parameter: torch.Tensor) -> list[torch.Tensor]:
    grad = parameter.grad
    return [parameter] if grad is None or part_of(grad) is None else [parameter, grad]


def _convert(tensor: torch.Tensor, conversion: Conversion) -> bool:
    part = part_of(tensor)
    assert part is not None
    with torch.no_grad():
        converted = conversion(part)
    if converted.dtype is part.dtype and converted.device == part.device:
        return False
    spec: Any = tensor._spec  # type: ignore[attr-defined]
    meta = spec.tensor_meta._replace(dtype=converted.dtype)
    set_part(tensor, converted, replace(spec, tensor_meta=meta))
    return True


def set_part(tensor: Any, part: torch.Tensor, spec: Any) -> None:
    """Replaces the local part of a DTensor; `spec` describes the whole tensor."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        tensor.data = type(tensor)(part, spec, requires_grad=False)
        tensor._local_tensor = part
        tensor._spec = spec


def tell_fsdp(root: torch.nn.Module, changed: Iterable[torch.Tensor]) -> None:
    """Updates the flat view that FSDP2 keeps of each part after the part was replaced."""
    ids = {id(tensor) for tensor in changed}
    for module in root.modules() if ids else ():
        state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
        for group in getattr(state, "_fsdp_param_groups", ()):
            for held in group.fsdp_params:
                if id(held.sharded_param) in ids:
                    held.reset_sharded_param()
