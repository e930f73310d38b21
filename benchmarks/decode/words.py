"""Packed integers of random bits for contestants, and what libraries do to unpack them."""

from __future__ import annotations

import torch


def random_words(*shape: int) -> torch.Tensor:
    """int32, every bit random."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def random_scales(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(shape) * 0.01 + 0.001).to(dtype)


class Gptq:
    """`TorchLinear.dequantize_weight` of gptqmodel, which this environment can't install.

    The operators are those of nn_modules/qlinear/torch.py and utils/model.py, one for one, for 2, 4
    and 8 bits; the result is a transposed view, as there.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        self.dtype = torch.int16 if bits == 8 else torch.int8
        self.ones = sum(1 << bit for bit in range(0, 32, bits))

    def weight(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        qweight, scales, g_idx = (tensors[name] for name in ("qweight", "scales", "g_idx"))
        qzeros = tensors["qzeros"] + self.ones
        factor, most = 32 // self.bits, (1 << self.bits) - 1
        zeros = torch.bitwise_right_shift(
            qzeros.unsqueeze(2).expand(-1, -1, factor), self.shifts.view(1, 1, -1)
        ).to(self.dtype)
        zeros = torch.bitwise_and(zeros, most).reshape(len(qzeros), -1)[:, : scales.shape[1]]
        weight = torch.bitwise_and(
            torch.bitwise_right_shift(
                qweight.unsqueeze(1).expand(-1, factor, -1), self.shifts.view(1, -1, 1)
            ).to(self.dtype),
            most,
        )
        weight = weight.reshape(-1, weight.shape[2])
        groups = g_idx.long()
        return (scales[groups] * (weight[: len(groups)] - zeros[groups])).T


def gptq_layer(rows: int, columns: int, bits: int, group: int) -> dict[str, torch.Tensor]:
    """The tensors of a layer whose columns are in order."""
    groups = columns // group
    return {
        "qweight": random_words(columns * bits // 32, rows),
        "qzeros": random_words(groups, rows * bits // 32),
        "scales": random_scales(groups, rows),
        "g_idx": torch.arange(columns, dtype=torch.int32) // group,
    }
