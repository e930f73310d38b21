"""The statistics of 4-bit weights: where a state dict looks for them, and which it has as text."""

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
    """Makes them real, each from all of its weight: `state_dict` would, without a word.

    Args:
        model: any module; weights that are not of bitsandbytes are passed over.
        memory_budget: as for `dormant.save`.
        progress: as for `dormant.save`, in bytes of the weights in full precision.

    Raises:
        ValueError: `memory_budget` is too small to work in.
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
    """Has `_before_state_dict` called by the module as long as its weight is lazy."""
    is_lazy = _C.is_lazy(_quant_state(module).absmax)
    if is_lazy and _before_state_dict not in module._state_dict_pre_hooks.values():
        module.register_state_dict_pre_hook(_before_state_dict)  # type: ignore[no-untyped-call]


def forget(module: torch.nn.Module) -> None:
    """Undoes `watch`."""
    hooks = module._state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _before_state_dict]:
        del hooks[key]


def attach(module: torch.nn.Module) -> None:
    """Gives the part that a sharding left in a Linear4bit what the whole weight had.

    Its state is saved with it then, and torch.distributed.checkpoint.state_dict, which looks every
    name of a state dict up as attributes, finds "weight.absmax", ... as in a Params4bit.
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
            with contextlib.suppress(AttributeError):  # what only nested ones have
                setattr(attributes, name, value.fget(whole))


def _quant_state(module: torch.nn.Module) -> Any:
    """The QuantState of a layer's weight, or of a Bnb4bitParametrization."""
    weight = own_parameter(module, "weight")
    return getattr(weight, "quant_state", None) or vars(module).get("quant_state")


def _lazy_offset(module: torch.nn.Module) -> torch.Tensor | None:
    offset: torch.Tensor | None = getattr(_quant_state(module), "offset", None)
    return offset if offset is not None and _C.is_lazy(offset) else None


def _before_state_dict(module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
    """Makes the offset of the scales real, which a state dict has as text.

    In tiles, like all of `materialize`: read by itself, as `item` does, it would have the whole
    weight replayed, and the source would keep that.
    """
    attach(module)
    offset = _lazy_offset(module)
    if offset is not None:
        realize(offset)
