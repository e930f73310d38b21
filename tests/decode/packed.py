"""Layers of packed integers of random bits, and what their libraries make of them.

gptqmodel and AutoAWQ can't be installed beside this torch, so what they compute is written here:
`TorchLinear.dequantize_weight` of gptqmodel (nn_modules/qlinear/torch.py), with the zeros that
`convert_gptq_v1_to_v2_format_module` (utils/model.py) makes of the old format, and
`dequantize_gemm` of AutoAWQ (utils/packing_utils.py), which gptqmodel has, too. Each in plain
PyTorch, in the library's dtypes.
"""

from __future__ import annotations

import torch


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    """int32 of random bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64, generator=generator).int()


def scales(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 1) -> torch.Tensor:
    """Of both signs and many magnitudes, zero and the largest among them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(
        -18, 2, shape, generator=generator
    )
    numbers.view(-1)[0] = 0
    numbers.view(-1)[-1] = torch.finfo(torch.float16).max
    return numbers.to(dtype)


def codes(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes along the last dimension of words, each `bits` bits."""
    unsigned = packed.long() & 0xFFFFFFFF
    unsigned = torch.cat([unsigned, torch.zeros_like(unsigned[..., :1])], -1)
    bit = torch.arange(count) * bits
    both = unsigned[..., bit // 32] | unsigned[..., bit // 32 + 1] << 32
    return both >> bit % 32 & (1 << bits) - 1


def gptq(
    rows: int,
    columns: int,
    bits: int = 4,
    group: int = 32,
    *,
    act_order: bool = False,
    g_idx: bool = True,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A layer of so many outputs and inputs."""
    size = columns if group == -1 else group
    groups = -(-columns // size)
    tensors = {
        "qweight": words(-(-columns * bits // 32), rows, seed=seed),
        "qzeros": words(groups, -(-rows * bits // 32), seed=seed + 1),
        "scales": scales(groups, rows, dtype=dtype, seed=seed + 2),
    }
    if g_idx:
        of = torch.arange(columns, dtype=torch.int32) // size
        generator = torch.Generator().manual_seed(seed)
        tensors["g_idx"] = (
            of[torch.randperm(columns, generator=generator)] if act_order else of
        ).clone()
    return tensors


def gptq_weight(
    tensors: dict[str, torch.Tensor], bits: int, group: int = 32, *, old: bool = True
) -> torch.Tensor:
    """What gptqmodel computes; `old` is checkpoint_format "gptq"."""
    qweight, qzeros, scale = (tensors[name] for name in ("qweight", "qzeros", "scales"))
    columns = len(tensors["g_idx"]) if "g_idx" in tensors else qweight.shape[0] * 32 // bits
    size = columns if group == -1 else group
    of = tensors["g_idx"].long() if "g_idx" in tensors else torch.arange(columns) // size
    if old and bits != 3:
        ones = sum(1 << bit for bit in range(0, 32, bits))
        qzeros = (qzeros.long() + ones).to(torch.int32)  # with carries, as in the library
    zeros = codes(qzeros, bits, scale.shape[1])
    if old and bits == 3:
        zeros = zeros + 1 & 7
    kind = {8: torch.int16, 3: torch.int32}.get(bits, torch.int8)
    weight = codes(qweight.t(), bits, columns).t().to(kind)
    return (scale[of] * (weight - zeros.to(kind)[of])).t().contiguous()


def awq(
    rows: int, columns: int, group: int = 32, *, dtype: torch.dtype = torch.float16, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A layer of so many outputs and inputs."""
    groups = 1 if group == -1 else columns // group
    return {
        "qweight": words(columns, rows // 8, seed=seed),
        "qzeros": words(groups, rows // 8, seed=seed + 1),
        "scales": scales(groups, rows, dtype=dtype, seed=seed + 2),
    }


def awq_weight(tensors: dict[str, torch.Tensor], group: int = 32) -> torch.Tensor:
    """What AutoAWQ computes."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # AWQ_REVERSE_ORDER
    places = (torch.arange(tensors["scales"].shape[1]).view(-1, 8)[:, order]).flatten()
    weight, zeros = (
        codes(tensors[name], 4, len(places))[:, places].to(torch.int8)
        for name in ("qweight", "qzeros")
    )
    size = len(weight) if group == -1 else group
    spread = tensors["scales"].repeat_interleave(size, 0)
    return ((weight - zeros.repeat_interleave(size, 0)) * spread).t().contiguous()
