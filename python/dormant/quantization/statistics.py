"""The offsets of nested statistics, which a state dict has as text: computed before it is asked."""

from __future__ import annotations

from typing import Any

import torch

from dormant._extension import _C
from dormant.reporting.progress import Callback, following
from dormant.reporting.tally import Tally
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


def watch_offset(module: torch.nn.Module) -> None:
    """Has `_offset_first` called by the module while there is an offset that is lazy."""
    hooks = module._state_dict_pre_hooks
    if _lazy_offset(module) is not None and _offset_first not in hooks.values():
        module.register_state_dict_pre_hook(_offset_first)  # type: ignore[no-untyped-call]


def forget_offset(module: torch.nn.Module) -> None:
    """Undoes `watch_offset`."""
    hooks = module._state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _offset_first]:
        del hooks[key]


def _quant_state(module: torch.nn.Module) -> Any:
    """The QuantState of a layer's weight, or of a Bnb4bitParametrization."""
    weight = own_parameter(module, "weight")
    return getattr(weight, "quant_state", None) or vars(module).get("quant_state")


def _lazy_offset(module: torch.nn.Module) -> torch.Tensor | None:
    offset: torch.Tensor | None = getattr(_quant_state(module), "offset", None)
    return offset if offset is not None and _C.is_lazy(offset) else None


def _offset_first(module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
    """Makes the offset of the scales real, which a state dict has as text.

    In tiles, like all of `materialize`: read by itself, as `item` does, it would have the whole
    weight replayed, and the source would keep that.
    """
    offset = _lazy_offset(module)
    if offset is not None:
        realize(offset)
