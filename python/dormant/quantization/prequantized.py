"""Checks the metadata of checkpoints that were saved quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGEST_STATE = 1 << 16


@dataclass(frozen=True)
class SavedState:
    """What bitsandbytes writes as JSON beside the packed bytes of a 4-bit weight."""

    block_size: int
    dtype: torch.dtype
    nested_block_size: int
    nested_offset: float


def read_state(tensor: torch.Tensor, kind: str, shape: torch.Size, where: str) -> SavedState:
    """Reads the JSON of a 4-bit weight and checks it against the layer.

    Args:
        tensor: its bytes, uint8.
        kind: the expected quant_type.
        shape: the expected shape of the weight.
        where: what the weight belongs to, for messages.

    Returns:
        The contents of the JSON.

    Raises:
        ValueError: it is not such JSON, or contains other values.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 1 or tensor.numel() > _LARGEST_STATE:
        raise _wrong(
            where, "quant_state", "uint8 text", f"{tensor.dtype} of shape {list(tensor.shape)}"
        )
    try:
        state = json.loads(bytes(tensor.tolist()).decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _wrong(where, "quant_state", "JSON", str(error)) from error
    if not isinstance(state, dict):
        raise _wrong(where, "quant_state", "a JSON object", type(state).__name__)
    _expect(state, "quant_type", kind, where)
    _expect(state, "shape", list(shape), where)
    dtype = state.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _wrong(where, "quant_state.dtype", " or ".join(_DTYPES), repr(dtype))
    nested = "nested_offset" in state or "nested_blocksize" in state
    offset = state.get("nested_offset", 0.0)
    if isinstance(offset, bool) or not isinstance(offset, (int, float)):
        raise _wrong(where, "quant_state.nested_offset", "a number", repr(offset))
    if nested:
        _expect(state, "nested_dtype", "float32", where)
    return SavedState(
        block_size=_block_size(state, "blocksize", where),
        dtype=_DTYPES[dtype],
        nested_block_size=_block_size(state, "nested_blocksize", where) if nested else 256,
        nested_offset=float(offset),
    )


def check_parts(
    entries: Mapping[str, torch.Tensor],
    *,
    required: Sequence[str],
    optional: Sequence[str],
    where: str,
) -> None:
    """Checks that a layer has all of its tensors and no others.

    Raises:
        KeyError: it does not; all names are listed.
    """
    missing = [name for name in required if name not in entries]
    unexpected = [name for name in entries if name not in (*required, *optional)]
    if missing or unexpected:
        raise KeyError(
            f"accept_prequantized: the checkpoint does not fit {where}: missing {missing}, "
            f"unexpected {unexpected}. It was saved with another scheme, or only in part."
        )


def check_tensor(
    entries: Mapping[str, torch.Tensor],
    name: str,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    where: str,
) -> None:
    """Checks dtype and shape of one tensor.

    Raises:
        KeyError: the tensor is missing.
        ValueError: dtype or shape is different.
    """
    if name not in entries:
        raise KeyError(f"accept_prequantized: {name} of {where} is missing.")
    tensor = entries[name]
    if tensor.dtype != dtype or tuple(tensor.shape) != sizes:
        raise _wrong(
            where,
            name,
            f"{dtype} of shape {list(sizes)}",
            f"{tensor.dtype} of shape {list(tensor.shape)}",
        )


def _expect(state: dict[str, Any], name: str, value: object, where: str) -> None:
    if state.get(name) != value:
        raise _wrong(where, f"quant_state.{name}", repr(value), repr(state.get(name)))


def _block_size(state: dict[str, Any], name: str, where: str) -> int:
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 4096:
        raise _wrong(where, f"quant_state.{name}", "1 to 4096", repr(value))
    return value


def _wrong(where: str, name: str, expected: str, got: str) -> ValueError:
    return ValueError(
        f"accept_prequantized: {name} of {where}: expected {expected}, got {got}. The checkpoint "
        "belongs to another layer or scheme, or is damaged."
    )
