"""What the formats of bitsandbytes have in common.

The layers, parameters and states are bitsandbytes' own objects; only the packed bytes and the
statistics come from Dormant's kernels, as lazy tensors.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from dormant._extension import _C

_SOURCES = (torch.float32, torch.bfloat16, torch.float16)


def library() -> Any:
    """The bitsandbytes package.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            "quantize: this scheme needs bitsandbytes, which cannot be imported "
            f"({error}). Install it: pip install 'bitsandbytes>=0.50'. The rest of dormant does "
            "not need it."
        ) from error


def set_option(options: object, name: str, value: object) -> None:
    """Sets an attribute of frozen options."""
    object.__setattr__(options, name, value)


def check_source(weight: torch.Tensor, name: str, what: str) -> None:
    """Raises ValueError if `what` cannot quantize `weight`."""
    if weight.dtype not in _SOURCES:
        raise ValueError(
            f"quantize: {name} is {weight.dtype}; {what} take torch.float32, torch.bfloat16 or "
            "torch.float16. Convert the model first, which costs nothing while it is lazy: "
            "model.to(torch.float32)."
        )
    if weight.numel() == 0:
        raise ValueError(
            f"quantize: {name} has no elements (shape {list(weight.shape)}). Skip the layer."
        )


def run(weight: torch.Tensor, quantizer: _C.Quantizer) -> list[torch.Tensor]:
    """What `quantizer` makes from `weight`; lazy if `weight` is lazy."""
    with torch.no_grad():
        if _C.is_lazy(weight):
            return _C.quantize(weight.detach(), quantizer)
        return _C.quantize_now(weight.detach().contiguous(), quantizer, torch.get_num_threads())


def check_is_layer(module: torch.nn.Module, attribute: str) -> None:
    """Raises NotImplementedError if `module` kept its class: it cannot use a gathered weight."""
    if attribute not in vars(module):
        raise NotImplementedError(
            f"dormant: the quantized weight of a {type(module).__name__} was divided, which works "
            "only in modules of exactly torch.nn.Linear. Next: leave it out with "
            "fully_shard(..., ignored_params=...), or do not quantize it."
        )
