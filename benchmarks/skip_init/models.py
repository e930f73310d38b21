"""A stack of linear layers, initialized as torch.nn does it or by truncated normal numbers."""

from __future__ import annotations

import torch

INITIALIZERS = ("uniform, as in torch.nn.Linear", "truncated normal, as in timm and openfold-3")


class Layer(torch.nn.Linear):
    """A linear layer with one of the initializers."""

    def __init__(self, width: int, outputs: int, initializer: str) -> None:
        self.initializer = initializer
        super().__init__(width, outputs)

    def reset_parameters(self) -> None:
        if self.initializer == INITIALIZERS[0]:
            super().reset_parameters()
        else:
            torch.nn.init.trunc_normal_(self.weight, std=0.02)
            torch.nn.init.zeros_(self.bias)


def build_model(width: int, layers: int, initializer: str) -> torch.nn.Module:
    """Constructs it eagerly, or as the context says."""
    blocks = [
        torch.nn.Sequential(
            Layer(width, 4 * width, initializer), Layer(4 * width, width, initializer)
        )
        for _ in range(layers)
    ]
    return torch.nn.Sequential(*blocks)
