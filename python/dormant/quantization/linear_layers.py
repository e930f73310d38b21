"""Which modules are linear layers, and the layout of their weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import torch

from dormant.tensors.inventory import own_parameter

Kind = Literal["linear", "conv1d", "column_parallel", "row_parallel"]


@dataclass(frozen=True)
class LinearLayer:
    """A module that multiplies with one weight.

    Attributes:
        module: the module; its parameter `weight` has two dimensions.
        kind: "linear" is exactly `torch.nn.Linear`; "conv1d" is transformers' Conv1D; the parallel
            ones are recognized by the names of their attributes in fairscale and Megatron.
    """

    module: torch.nn.Module
    kind: Kind

    @property
    def weight(self) -> torch.nn.Parameter:
        """The weight as the module holds it."""
        weight = self.module._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def transposed(self) -> bool:
        """Whether the layout is [in, out], as in Conv1D, instead of [out, in]."""
        return self.kind == "conv1d"

    @property
    def keeps_forward(self) -> bool:
        """Whether the forward of the module does more than the product: it communicates."""
        return self.kind in ("column_parallel", "row_parallel")


def linear_kind(module: torch.nn.Module) -> Kind | None:
    """The kind of linear layer that `module` is; None if it is not one.

    Subclasses of `torch.nn.Linear` are not: their forward may do something else.
    """
    if type(module) is torch.nn.Linear:
        return "linear"
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    if pytorch_utils is not None and isinstance(module, pytorch_utils.Conv1D):
        return "conv1d"
    weight = own_parameter(module, "weight")
    if weight is None or weight.dim() != 2:
        return None
    attributes = vars(module)
    if "gather_output" in attributes and _is(attributes, "output_size_per_partition", weight, 0):
        return "column_parallel"
    if "input_is_parallel" in attributes and _is(attributes, "input_size_per_partition", weight, 1):
        return "row_parallel"
    return None


def _is(attributes: dict[str, object], name: str, weight: torch.Tensor, dim: int) -> bool:
    return attributes.get(name) == weight.size(dim)
