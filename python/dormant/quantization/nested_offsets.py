"""The offsets of nested statistics, which a state dict has as text: computed before it is asked."""

from __future__ import annotations

import torch

from dormant._extension import _C
from dormant.reporting.progress import Callback, ProgressBar, wants_bar
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
        progress: as for `dormant.save`, in elements of the weights.

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
            offsets.append((offset, torch.Size(getattr(state, "shape", ())).numel()))
    total = sum(count for _, count in offsets)
    before = 0
    with ProgressBar("statistics") as bar:
        tell = progress if callable(progress) else bar if wants_bar(progress) else None
        for offset, count in offsets:

            def on_step(done: int, of: int, before: int = before, count: int = count) -> None:
                if tell is not None:
                    tell(before + count * done // max(of, 1), total)

            _C.materialize([offset], "exact", on_step, memory_budget)
            before += count
