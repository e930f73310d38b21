"""Changes of dtype and device that keep the identity of tensors exactly as `module.to` does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dormant.tensors.identity import is_wrapper
from dormant.tensors.reachable import reachable_tensors
from dormant.tensors.shards import Conversion, apply_sharded, part_of

_UNKNOWN = object()


def convert(roots: Iterable[tuple[str, object]], conversion: Conversion) -> None:
    """Applies `conversion` to each tensor under `roots` once, in place.

    In a module, it converts what `module.to` converts: parameters (which stay the same objects),
    buffers (which are replaced by new objects) and gradients. Tensors outside of a module stay the
    same objects.

    Args:
        roots: (name, object) pairs.
        conversion: returns the converted tensor, or the tensor itself.
    """
    for _, root in roots:
        if isinstance(root, torch.nn.Module):
            if not apply_sharded(root, conversion):
                root._apply(conversion)  # type: ignore[no-untyped-call]
            continue
        done: set[int] = set()
        for _, tensor in reachable_tensors(root):
            if id(tensor) not in done:
                done.add(id(tensor))
                _replace(tensor, conversion)


def convert_dtype(roots: Iterable[tuple[str, object]], dtype: torch.dtype) -> None:
    """Casts floating-point and complex tensors as `from_pretrained(dtype=)` does.

    In a module, this applies to parameters and persistent buffers. Other buffers are tables that
    the module computes itself, such as rotary frequencies; rounding them would change the model's
    outputs. Tensors that a model of transformers or diffusers keeps in float32 for this dtype are
    float32 afterwards.

    Args:
        roots: (name, object) pairs.
        dtype: the dtype.
    """
    for name, root in roots:
        exceptions = _exceptions(root, dtype) if isinstance(root, torch.nn.Module) else {}

        def conversion(
            tensor: torch.Tensor, exceptions: dict[int, torch.dtype] = exceptions
        ) -> torch.Tensor:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                return tensor
            return tensor.to(exceptions.get(id(tensor), dtype))

        convert([(name, root)], conversion)


def _exceptions(root: torch.nn.Module, dtype: torch.dtype) -> dict[int, torch.dtype]:
    """The dtypes of the tensors in `root` that do not get `dtype`, by the ids of the tensors."""
    found: dict[int, torch.dtype] = {}
    converted: set[int] = set()
    for module in root.modules():
        # TorchScript modules do not have this set.
        own = getattr(module, "_non_persistent_buffers_set", ())
        for name, buffer in module.named_buffers(recurse=False):
            if name in own:
                found[id(buffer)] = buffer.dtype
            else:
                converted.add(id(buffer))
    found = {key: kept for key, kept in found.items() if key not in converted}
    pending = [root]
    while pending:
        module = pending.pop()
        kept_dtype = _kept_by_library(module, dtype)
        if kept_dtype is None:
            pending.extend(module.children())
            continue
        for name, parameter in (*module.named_parameters(), *module.named_buffers()):
            to = None if id(parameter) in found else kept_dtype(name)
            if to is not None and parameter.is_floating_point():
                grad = parameter.grad if parameter.is_leaf else None
                for tensor in (parameter, part_of(parameter), grad):
                    found[id(tensor)] = to
    return found


def _kept_by_library(
    module: torch.nn.Module, dtype: torch.dtype
) -> Callable[[str], torch.dtype | None] | None:
    """The dtypes in which a model of transformers or diffusers keeps tensors, by their names.

    None if the module is of neither library. Only the outermost model is asked.
    """
    plan = getattr(module, "_get_dtype_plan", None)
    if plan is not None:
        # transformers/modeling_utils.py; the patterns match as in build_glob_alternation.
        patterns = [(re.compile(key.replace("*", ".*")), to) for key, to in plan(dtype).items()]
        return lambda name: next((to for pattern, to in patterns if pattern.search(name)), None)
    names: Any = getattr(module, "_keep_in_fp32_modules", _UNKNOWN)
    if names is _UNKNOWN:
        return None
    # diffusers/models/model_loading_utils.py, load_model_dict_into_meta: for any dtype.
    parts = {names} if isinstance(names, str) else set(names or ())
    return lambda name: None if parts.isdisjoint(name.split(".")) else torch.float32


def _replace(tensor: torch.Tensor, conversion: Conversion) -> None:
    with torch.no_grad():
        converted = conversion(tensor.detach())
        if converted.dtype is tensor.dtype and converted.device == tensor.device:
            return
        if is_wrapper(tensor):
            raise NotImplementedError(
                f"materialize: a {type(tensor).__name__} outside of a module cannot change its "
                "dtype or device in place. Pass the module that holds it, or convert it first with "
                ".to()."
            )
        tensor.data = converted
