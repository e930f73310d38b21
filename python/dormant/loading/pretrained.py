"""Names of transformers' checkpoints, which its `from_pretrained` turns into those of a model."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch

from dormant.loading.record import tensors_of
from dormant.loading.state import State
from dormant.recording.context import lazy_init
from dormant.tensors.pretrained import is_pretrained


def under_library_names(model: torch.nn.Module, state: State) -> State:
    """`state` under the names that a transformers model has, converted by the library's own rules.

    What is saved by `save_pretrained` often has the names and the layout of the first release of a
    model (experts apart, "encoder.layer" for "layers"). The rules are those of the installed
    version (transformers/core_model_loading.py); they are applied only where names do not fit.

    Args:
        model: the model; where it is not one of transformers, `state` is returned.
        state: what the checkpoint gives.

    Raises:
        ValueError: two tensors get one name.
    """
    library: Any = sys.modules.get("transformers.core_model_loading")
    if library is None or not is_pretrained(model):
        return state
    ours = tensors_of(model)
    if all(name in ours for name, value in state.items() if isinstance(value, torch.Tensor)):
        return state
    mapping: Any = sys.modules["transformers.conversion_mapping"]
    rules = mapping.get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, library.WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, library.WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix: Any = model.base_model_prefix
    result: dict[str, Any] = {}
    origins: dict[str, str] = {}
    pending: dict[str, Any] = {}

    def put(name: str, value: Any, origin: str) -> None:
        if name in result:
            raise ValueError(
                f"load: {origins[name]!r} and {origin!r} of the checkpoint are both {name!r} in "
                f"{type(model).__name__}, by the rules of transformers. Leave one of them out: "
                f"rename={{{origin!r}: None}}."
            )
        result[name] = value
        origins[name] = origin

    for name, value in sorted(state.items(), key=lambda item: library.dot_natural_key(item[0])):
        new, pattern = library.rename_source_key(name, renamings, converters, prefix, ours)
        if new not in ours and name in ours:
            new, pattern = name, None
        if new not in ours or not isinstance(value, torch.Tensor):
            put(name, value, name)  # unexpected under its own name
        elif pattern is None:
            put(new, value, name)
        else:
            rule = pending.setdefault(new, copy.deepcopy(by_pattern[pattern]))
            rule.add_tensor(new, name, pattern, value)
    with lazy_init(), torch.no_grad():
        for first, rule in pending.items():
            made = rule.convert(first, model=model, config=model.config)
            for name, value in made.items():
                put(name, value[0] if isinstance(value, list) else value, first)
    return state.like_this(result)
