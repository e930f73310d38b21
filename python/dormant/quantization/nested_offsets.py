"""The offsets of nested statistics, which a state dict has as text: computed before it is asked."""

from __future__ import annotations

import torch

from dormant._extension import _C
from dormant.reporting.progress import Callback, following
from dormant.reporting.tally import Tally
from dormant.tensors.inventory import own_parameter


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
    states = [
        getattr(own_parameter(module, "weight"), "quant_state", None) for module in model.modules()
    ]
    offsets: list[tuple[torch.Tensor, int]] = []
    for state in states:
        offset = getattr(state, "offset", None)
        if isinstance(offset, torch.Tensor) and _C.is_lazy(offset):
            weight = torch.Size(getattr(state, "shape", ())).numel()
            offsets.append((offset, weight * getattr(state, "dtype", torch.float32).itemsize))
    with following(progress, "statistics") as tell:
        tally = None if tell is None else Tally(sum(nbytes for _, nbytes in offsets), tell)
        for offset, nbytes in offsets:
            on_step = None if tally is None else tally.part(nbytes)
            _C.materialize([offset], "exact", on_step, memory_budget)
