"""The models that the ranks build, and which part of a tensor each rank is to hold."""

from __future__ import annotations

import importlib

import torch
from torch import nn

import dormant

SEED = 2026
ROWS = 11  # divisible by no number of ranks


class Block(nn.Module):
    """Every kind of history: uniform, normal in blocks and serially, constant, and opaque."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 20)
        self.down = nn.Linear(20, 6, bias=False)
        nn.init.trunc_normal_(self.up.weight, std=0.02)
        nn.init.orthogonal_(self.down.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class TiedModel(nn.Module):
    """Uneven sizes, a head tied to the embedding, a zeroed padding row, a buffer of angles."""

    angles: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, 6, padding_idx=2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.register_buffer("angles", torch.sin(torch.arange(6) * 0.1))
        self.head = nn.Linear(6, ROWS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.angles
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


class TwoLayers(nn.Module):
    """A model without ties, whose sizes four ranks divide evenly."""

    def __init__(self, outer: int = 8, inner: int = 16) -> None:
        super().__init__()
        self.up = nn.Linear(outer, inner)
        self.down = nn.Linear(inner, outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(torch.relu(self.up(x)))
        return out


class Stages(nn.Module):
    """Four blocks between an embedding and a head, for pipelines."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, 6)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(6, ROWS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


class Large(nn.Module):
    """320 MiB at width 2048, of which one tensor takes 128: to form it whole shows in a peak."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8 * width, width)
        self.blocks = nn.ModuleList([nn.Linear(width, 2 * width, bias=False) for _ in range(6)])


class Wide(nn.Module):
    """32 MiB in rows of 64 KiB: enough to tell the bytes of a part from those of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(16384, 128, bias=False) for _ in range(4)])


MODELS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (TiedModel, TwoLayers, Stages, Wide)
}


def eager_model(name: str) -> nn.Module:
    """The model as plain PyTorch builds it."""
    torch.manual_seed(SEED)
    return MODELS[name]()


def lazy_model(name: str) -> nn.Module:
    """The same under the same seed, without memory."""
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        return MODELS[name]()


def part_of(tensor: torch.Tensor, dim: int, parts: int, index: int) -> torch.Tensor:
    """What rank `index` of `parts` holds: runs of ceil(size / parts), the last ones shorter."""
    size = tensor.size(dim)
    run = -(-size // parts)
    start = min(index * run, size)
    return tensor.detach().narrow(dim, start, min(run, size - start))


def mixtral() -> nn.Module:
    """Two layers of four experts."""
    transformers = importlib.import_module("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        num_local_experts=4,
    )
    model: nn.Module = transformers.MixtralForCausalLM(config)
    return model


class Layered(nn.Module):
    """Linear layers that two or four ranks divide evenly, unevenly, or within blocks of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(64, 128, bias=False), nn.Linear(128, 66), nn.Linear(66, 64, bias=False)]
        )
        self.head = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        out: torch.Tensor = self.head(x)
        return out
