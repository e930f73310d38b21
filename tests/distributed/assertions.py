"""Claims about what ranks report, against the eager model built in the test's own process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compare import assert_same_bits


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers as a rank reports them: each once, in the same order."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in tensors}


def assert_same_tensors(
    expected: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor], where: str
) -> None:
    """Fails unless both hold the same names with the same bits, and at least one."""
    assert expected, f"{where}: nothing to compare"
    assert list(expected) == list(got), where
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], f"{where}: {name}")


def assert_came_to_life(result: Mapping[str, Any], where: str) -> None:
    """Fails if anything is lazy, or goes through the dispatch key, after materializing."""
    assert result["lazy after"] == [], where
    assert result["keyed after"] == [], where
