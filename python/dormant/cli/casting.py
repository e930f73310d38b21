"""`--dtype` casts floating-point tensors, except those that belong to quantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from dormant.tensors.identity import identity

# Dtypes of packed weights. If a module has a matrix of one of them, its floating-point tensors are
# the scales of the matrix, whatever a quantizer calls them: SCB, scales, weight_scale, ...
_PACKED = {
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float4_e2m1fn_x2,
}
# Also packed, but always scales or packed numbers themselves.
_NEVER_CAST = {torch.float8_e8m0fnu, torch.float4_e2m1fn_x2}


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype that an argument names."""
    return None if name is None else getattr(torch, name)


def cast(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Casts floating-point tensors to `dtype`, lazily; tensors that share a storage still do.

    Quantized weights and their scales stay unchanged, because a cast would change their meaning or
    even their layout.
    """
    kept = set(_of_quantized_weights(state))
    done: dict[object, torch.Tensor] = {}
    result = dict(state)
    for name, tensor in state.items():
        if tensor.is_floating_point() and name not in kept and tensor.dtype not in _NEVER_CAST:
            key = identity(tensor)
            if key not in done:
                done[key] = tensor.to(dtype)
            result[name] = done[key]
    return result


def _of_quantized_weights(state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    packed = {name for name, tensor in state.items() if _is_packed(tensor)}
    modules: dict[str, list[str]] = {}
    for name, tensor in state.items():
        place = name.rpartition(".")[0]
        # bitsandbytes puts absmax and similar tensors below the weight, others put them beside it.
        module = place.rpartition(".")[0] if place in packed else place
        if tensor.is_floating_point() and not name.endswith("bias") and name not in packed:
            modules.setdefault(module, []).append(name)
    for module in {name.rpartition(".")[0] for name in packed}:
        yield from modules.get(module, ())
    # Without scales beside it, an 8-bit float is just a number.
    yield from (name for name in packed if name.rpartition(".")[0] in modules)


def _is_packed(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _PACKED and tensor.dim() >= 2
