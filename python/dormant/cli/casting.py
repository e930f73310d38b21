"""`--dtype`: floating point tensors in another dtype, but for what belongs to quantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from dormant.tensors.identity import identity

# Dtypes of packed weights. Where a matrix of one of them stands in a module, the floating point
# tensors beside it are its scales, whatever a quantizer calls them: SCB, scales, weight_scale, ...
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
# Packed as well, but always scales or packed themselves.
_NEVER_CAST = {torch.float8_e8m0fnu, torch.float4_e2m1fn_x2}


def cast(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating point tensors in `dtype`, lazy, those of one storage still of one.

    Quantized weights and what belongs to them stay as they are: a cast would change what they
    stand for, or even their layout.
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
        # bitsandbytes puts absmax and its like below the weight, others beside it.
        module = place.rpartition(".")[0] if place in packed else place
        if tensor.is_floating_point() and not name.endswith("bias") and name not in packed:
            modules.setdefault(module, []).append(name)
    for module in {name.rpartition(".")[0] for name in packed}:
        yield from modules.get(module, ())
    # Without scales beside it an 8-bit float is just a number.
    yield from (name for name in packed if name.rpartition(".")[0] in modules)


def _is_packed(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _PACKED and tensor.dim() >= 2
