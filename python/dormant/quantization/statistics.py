"""The statistics of 4-bit weights: their places in a state dict, and which are stored as text."""

from __future__ import annotations

import contextlib
import importlib
import types
from typing import Any

import torch

from dormant._extension import _C
from dormant.reporting.progress import Callback, following
from dormant.reporting.tally import Tally
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.inventory import own_parameter
from dormant.tensors.storage import realize


def compute_offsets(
    model: torch.nn.Module,
    *,
    memory_budget: int | None = None,
    progress: bool | Callback | None = None,
) -> None:
    """Materializes them, each from its whole weight; `state_dict` would do so without progress.

    Args:
        model: any module; weights that are not packed by bitsandbytes are ignored.
        memory_budget: as for `dormant.save`.
        progress: as for `dormant.save`, in bytes of the full-precision weights.

    Raises:
        ValueError: `memory_budget` is too small.
        KeyboardInterrupt: the user interrupted it.
    """
    offsets: list[tuple[torch.Tensor, int]] = []
    seen: set[int] = set()
    for module in model.modules():
        state = _quant_state(module)
        offset = getattr(state, "offset", None)
        if isinstance(offset, torch.Tensor) and _C.is_lazy(offset) and id(offset) not in seen:
            seen.add(id(offset))
            weight = torch.Size(getattr(state, "shape", ())).numel()
            offsets.append((offset, weight * getattr(state, "dtype", torch.float32).itemsize))
    with following(progress, "statistics") as tell:
        tally = None if tell is None else Tally(sum(nbytes for _, nbytes in offsets), tell)
        for offset, nbytes in offsets:
            on_step = None if tally is None else tally.part(nbytes)
            _C.materialize([offset], "exact", on_step, memory_budget)


def watch(module: torch.nn.Module) -> None:
    """Makes the module call `_before_state_dict` as long as its weight is lazy."""
    is_lazy = _C.is_lazy(_quant_state(module).absmax)
    if is_lazy and _before_state_dict not in module._state_dict_pre_hooks.values():
        module.register_state_dict_pre_hook(_before_state_dict)  # type: ignore[no-untyped-call]


def forget(module: torch.nn.Module) -> None:
    """Undoes `watch`."""
    hooks = module._state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _before_state_dict]:
        del hooks[key]


def attach(module: torch.nn.Module) -> None:
    """Gives the part of a Linear4bit that sharding left the attributes of the whole weight.

    Its state is then saved with it. torch.distributed.checkpoint.state_dict, which looks up every
    name of a state dict as attributes, finds "weight.absmax", ... as in a Params4bit.
    """
    part, state = module._parameters.get("weight"), vars(module).get("quant_state")
    if not is_dtensor(part) or state is None:
        return
    attributes: Any = part
    attributes.quant_state = state
    whole = types.SimpleNamespace(quant_state=state)
    params = importlib.import_module("bitsandbytes").nn.Params4bit
    for name, value in vars(params).items():
        if isinstance(value, property) and value.fget is not None:
            with contextlib.suppress(AttributeError):  # only nested scales have these
                setattr(attributes, name, value.fget(whole))


def _quant_state(module: torch.nn.Module) -> Any:
    """The QuantState of a layer's weight, or of a Bnb4bitParametrization."""
    weight = own_parameter(module, "weight")
    return getattr(weight, "quant_state", None) or vars(module).get("quant_state")


def _lazy_offset(module: torch.nn.Module) -> torch.Tensor | None:
    offset: torch.Tensor | None = getattr(_quant_state(module), "offset", None)
    return offset if offset is not None and _C.is_lazy(offset) else None


def _before_state_dict(module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
    """Materializes the offset of the scales, which a state dict contains as text.

    It runs in tiles, like all of `materialize`. Reading the offset directly, as `item` does, would
    replay the whole weight and keep it in the source.
    """
    attach(module)
    offset = _lazy_offset(module)
    if offset is not None:
        realize(offset)
