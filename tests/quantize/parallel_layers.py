"""Column and row parallel layers with the attributes of fairscale's and Megatron's, on one process.

Each keeps the rows or columns of one part; "communicating" calls functions that tests give.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Communicate = Callable[[torch.Tensor], torch.Tensor]


class ColumnParallelLinear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        parts: int = 1,
        bias: bool = True,
        gather: Communicate | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.gather_output = gather is not None
        self.output_size_per_partition = out_features // parts
        self.gather = gather
        self.weight = nn.Parameter(torch.empty(self.output_size_per_partition, in_features))
        self.bias = nn.Parameter(torch.zeros(self.output_size_per_partition)) if bias else None
        nn.init.xavier_normal_(self.weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = nn.functional.linear(input, self.weight, self.bias)
        return output if self.gather is None else self.gather(output)


class RowParallelLinear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        parts: int = 1,
        bias: bool = True,
        reduce: Communicate | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.input_is_parallel = True
        self.input_size_per_partition = in_features // parts
        self.reduce = reduce
        self.weight = nn.Parameter(torch.empty(out_features, self.input_size_per_partition))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.xavier_normal_(self.weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = nn.functional.linear(input, self.weight)
        if self.reduce is not None:
            output = self.reduce(output)
        return output if self.bias is None else output + self.bias


class MegatronColumnParallelLinear(nn.Module):
    """Returns the bias beside the output instead of adding it, as Megatron's layers may."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.output_size_per_partition = output_size
        self.gather_output = False
        self.skip_bias_add = True
        self.weight = nn.Parameter(torch.randn(output_size, input_size))
        self.bias = nn.Parameter(torch.randn(output_size))

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return nn.functional.linear(input, self.weight), self.bias
