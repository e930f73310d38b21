"""Optimizers that would go on training what is no longer in the model."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch


def check_no_optimizer_holds(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises where an optimizer that is alive has one of `weights` among its parameters.

    It looks at every object that Python's garbage collector knows: an optimizer tells nobody what
    it holds.

    Args:
        weights: names and parameters that are about to be replaced.

    Raises:
        ValueError: an optimizer has them; all are listed.
    """
    by_id = {id(weight): name for name, weight in weights.items()}
    held: dict[str, list[str]] = {}
    for candidate in gc.get_objects():
        if not issubclass(type(candidate), torch.optim.Optimizer):
            continue
        names = [
            by_id[id(parameter)]
            for group in vars(candidate).get("param_groups", ())
            for parameter in group["params"]
            if id(parameter) in by_id
        ]
        if names:
            held.setdefault(type(candidate).__name__, []).extend(names)
    if held:
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in held.items())
        raise ValueError(
            "quantize: an optimizer already holds weights that are to be replaced; it would train "
            f"tensors that are no longer in the model ({listed}). Make the optimizer after "
            "quantising, from what is left to train."
        )
