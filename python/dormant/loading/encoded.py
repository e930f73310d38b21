"""Checkpoints whose weights are encoded, and what a model knows about this."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from dormant.checkpoint.pretrained import Rules
from dormant.quantization.layers import quantized_weights, tensors_of
from dormant.tensors.pretrained import is_pretrained


def takes_packed(model: torch.nn.Module) -> Callable[[str], bool]:
    """Whether the model has a quantized weight for a name of the model or of a checkpoint.

    Such a weight takes the bytes that a library packed, if it is lazy. (Experts that were packed
    separately make a stack.)
    """
    weights = {weight.name for weight in quantized_weights(model) if weight.is_lazy}
    if not weights:
        return lambda name: False
    own = tensors_of(model)
    known = {**own, **dict.fromkeys(weights, True)}
    rules: Rules | None = None
    if "transformers.core_model_loading" in sys.modules and is_pretrained(model):
        rules = Rules(model)

    def takes(name: str) -> bool:
        return name in weights or (
            rules is not None and name not in own and rules.apply_to(name, known)[0] in weights
        )

    return takes


def forget_encoding(config: Any) -> None:
    """Removes the encoding of a checkpoint from a configuration of transformers.

    The library does this when it decodes (`remove_quantization_config` in its quantizers/base.py).
    Otherwise the decoded model would be saved as an encoded one.
    """
    for part in (config, getattr(config, "text_config", None)):
        if part is not None and "quantization_config" in vars(part):
            del part.quantization_config
