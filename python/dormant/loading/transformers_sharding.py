"""Changes how transformers' `from_pretrained` cuts parts: inside the context, it cuts last.

The library cuts this rank's part from each tensor of the checkpoint and then converts the parts.
Conversions that move rows, such as the permutation for rotary embeddings, then give wrong values
without an error (transformers#48519). A lazy tensor costs nothing, so here whole tensors are
converted, and the part is cut from the result.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording.patches import Function, Patch, declare
from dormant.tensors.dtensor import is_dtensor

_cuts_last: ContextVar[bool] = ContextVar("_cuts_last", default=False)


@contextlib.contextmanager
def cutting_last(load_config: Any) -> Iterator[None]:
    """Active if `_load_pretrained_model` loads lazily; quantizers of the library work on parts."""
    lazily = _C.recording() and getattr(load_config, "hf_quantizer", None) is None
    token = _cuts_last.set(lazily)
    try:
        yield
    finally:
        _cuts_last.reset(token)


def _leaving_it_whole(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        self: Any, source: Any, tensor_idx: int | None = None, device: Any = None, dtype: Any = None
    ) -> Any:
        if _cuts_last.get():
            return source[...].to(device=device, dtype=dtype)
        return original(self, source, tensor_idx, device, dtype)

    return replacement


def _setting_the_part(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        model: Any, target_name: str, param_value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if _cuts_last.get():
            path, _, attribute = target_name.rpartition(".")
            held = getattr(model.get_submodule(path), attribute, None)
            if is_dtensor(held) and param_value.shape == held.shape:
                part = _part(held, param_value)
                # The library has it like this from a file: not a view of the whole.
                param_value = part.clone(memory_format=torch.contiguous_format)
        return original(model, target_name, param_value, *args, **kwargs)

    return replacement


def _part(held: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The part that the library cuts for this rank."""
    sharding = importlib.import_module("transformers.distributed.sharding_utils")
    token = _cuts_last.set(False)
    try:
        part: torch.Tensor = sharding.DtensorShardOperation(held).shard_tensor(whole)
    finally:
        _cuts_last.reset(token)
    return part


declare(
    Patch(
        "transformers.distributed.sharding_utils:DtensorShardOperation",
        "shard_tensor",
        "cuts shards before the tensors are converted",
        _leaving_it_whole,
    ),
    Patch(
        "transformers.core_model_loading",
        "set_param_for_module",
        "expects shards that are already cut",
        _setting_the_part,
    ),
)
