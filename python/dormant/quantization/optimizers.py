"""Optimizers that would continue to train weights that are no longer in the model."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch


def check_no_optimizer_holds(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises an error if a live optimizer has one of `weights` among its parameters.

    It asks Python's garbage collector what refers to them, because PyTorch keeps no record of this.

    Args:
        weights: names and parameters that are about to be replaced.

    Raises:
        ValueError: optimizers have some of them; all are listed.
    """
    if not _were_there_any():
        return
    held = _held_by_optimizers(weights)
    if held:
        # Deleted optimizers may live on in cycles (with their scheduler) until a collection.
        gc.collect()
        held = _held_by_optimizers(weights)
    if held:
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in held.items())
        raise ValueError(
            "quantize: an optimizer already holds weights that would be replaced, so it would "
            f"train tensors that are no longer in the model ({listed}). Create the optimizer "
            "after quantizing, from the parameters that are left to train."
        )


def _were_there_any() -> bool:
    """Whether this process has created an optimizer; finding references takes 0.1 s and more.

    The first optimizer of a class replaces its `step` (`Optimizer._patch_step_function`).
    """
    kinds = [torch.optim.Optimizer]
    for kind in kinds:  # the list grows in the loop
        kinds += kind.__subclasses__()
    return any(getattr(kind.step, "hooked", False) for kind in kinds)


def _held_by_optimizers(weights: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The names of `weights` that optimizers have, by the optimizers' classes; keeps none alive."""
    by_id = {id(weight): name for name, weight in weights.items()}
    held: dict[str, list[str]] = {}
    for optimizer in _optimizers_around(weights):
        names = [
            by_id[id(parameter)]
            for group in vars(optimizer).get("param_groups", ())
            for parameter in group["params"]
            if id(parameter) in by_id
        ]
        if names:
            held.setdefault(type(optimizer).__name__, []).extend(names)
    return held


def _optimizers_around(weights: Mapping[str, torch.Tensor]) -> list[torch.optim.Optimizer]:
    """The optimizers that hold one of `weights` through lists and dicts.

    `gc.get_objects` would be simpler, but it also returns the tuples that other threads are just
    filling, and those threads then fail with a SystemError (_PyTuple_Resize in CPython's
    Objects/tupleobject.c must be the only owner).
    """
    found: dict[int, torch.optim.Optimizer] = {}
    ours: list[object] = [weights]  # what refers to them here and in the caller
    level: list[object] = list(weights.values())
    # A parameter is in a list, in a group, in a list of groups, in the attributes of the optimizer.
    for _ in range(5):
        ours.append(level)
        known = {id(each) for each in ours}
        referrers = gc.get_referrers(*level) if level else []
        ours.append(referrers)
        level = []
        for referrer in referrers:
            if issubclass(type(referrer), torch.optim.Optimizer):
                found[id(referrer)] = referrer
            elif type(referrer) in (list, dict) and id(referrer) not in known:
                level.append(referrer)
    return list(found.values())
