"""How a rank gets its part of a model under fully_shard, or all of it, in bfloat16 or nf4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard

import dormant

BLOCK = 128  # elements of fp8 that share a scale, along rows and columns


def build(layers: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(size, size, bias=False, dtype=torch.bfloat16) for _ in range(layers))
    )


def shard(model: Any) -> Any:
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def decoded(path: Path) -> dict[str, torch.Tensor]:
    """The checkpoint in bfloat16, by plain PyTorch."""
    state = safetensors.torch.load_file(path)
    found = {}
    for name, tensor in state.items():
        if name.endswith("_scale_inv"):
            continue
        scales = state.get(f"{name}_scale_inv")
        if scales is not None:
            whole = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            tensor = (tensor.float() * whole).bfloat16()
        found[name] = tensor
    return found


def dormant_load(path: Path, packed: bool, layers: int, size: int) -> nn.Module:
    """Quantize, shard and load what is lazy."""
    with dormant.lazy_init():
        model = build(layers, size)
    if packed:
        dormant.quantize(model, "nf4", skip=())
    shard(model)
    dormant.load(model, path, progress=False)
    return model


def every_rank_loads_all(path: Path, packed: bool, layers: int, size: int) -> nn.Module:
    """The whole on each rank, then packed, then divided."""
    with torch.device("meta"):
        model: Any = build(layers, size)
    model.load_state_dict(decoded(path), assign=True)
    if packed:
        import bitsandbytes

        for i, layer in enumerate(model):
            with torch.device("meta"):
                four_bit = bitsandbytes.nn.Linear4bit(size, size, bias=False, quant_type="nf4")
            four_bit.weight = bitsandbytes.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", module=four_bit
            )
            model[i] = four_bit.to("cpu")
    return shard(model)


def rank_0_loads_and_sends(path: Path, packed: bool, layers: int, size: int) -> nn.Module:
    """torch's `broadcast_from_rank0`; it has no way for packed weights."""
    if packed:
        raise NotImplementedError("packed weights are not sent")
    with torch.device("meta"):
        model = shard(build(layers, size))
    model.to_empty(device="cpu")
    state = decoded(path) if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    return model


WAYS = {
    "dormant": dormant_load,
    "every rank loads all": every_rank_loads_all,
    "rank 0 loads and sends": rank_0_loads_and_sends,
}


def each_reads_all(path: Path, packed: bool, layers: int, size: int) -> nn.Module:
    """DDP: every rank has the model, and reads it."""
    return _replica(path, packed, layers, size, share_reads=False)


def each_reads_a_share(path: Path, packed: bool, layers: int, size: int) -> nn.Module:
    """DDP: every rank reads a part, and gets the rest from the others."""
    return _replica(path, packed, layers, size, share_reads=True)


def _replica(path: Path, packed: bool, layers: int, size: int, *, share_reads: bool) -> nn.Module:
    with dormant.lazy_init():
        model = build(layers, size)
    if packed:
        dormant.quantize(model, "nf4", skip=())
    # What is mapped is read when it is looked at, which nobody counts.
    dormant.load(model, path, mmap="never", share_reads=share_reads, progress=False)
    return model


REPLICAS = {"every rank reads all": each_reads_all, "share_reads": each_reads_a_share}
