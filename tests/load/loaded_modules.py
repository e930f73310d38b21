"""Small models, each with one thing that loading has to respect."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Plain(nn.Module):
    """Parameters and buffers of several dtypes, persistent or not, and tensors in attributes."""

    table: torch.Tensor
    cache: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12, padding_idx=3)
        self.layers = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 12, bias=False)])
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(3)) for _ in range(2)])
        self.coarse = nn.Parameter(torch.randn(7, 3, dtype=torch.float16))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("table", torch.arange(9))
        self.register_buffer("cache", torch.rand(6, 6), persistent=False)
        self.noise = torch.randn(4, 4)


class Normalized(nn.Module):
    """BatchNorm: running statistics, and a counter that old states lack."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)


class Renaming(nn.Module):
    """Pre-hooks, public and private, that rename and reshape what a state holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(6))
        self.register_load_state_dict_pre_hook(self._rename)
        self._register_load_state_dict_pre_hook(self._unflatten)

    @staticmethod
    def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix + "gamma" in state:
            state[prefix + "weight"] = state.pop(prefix + "gamma").view(4, 6).t()

    @staticmethod
    def _unflatten(state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix + "beta" in state:
            state[prefix + "bias"] = state.pop(prefix + "beta")[0]


class Forgiving(nn.Module):
    """A post-hook that forgives a name the state lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Linear(5, 5)
        self.new = nn.Linear(5, 5)
        self.register_load_state_dict_post_hook(self._forgive)

    @staticmethod
    def _forgive(module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [
            name for name in incompatible.missing_keys if "new." not in name
        ]


class Fused(nn.Module):
    """`_load_from_state_dict` of its own: three tensors of the state become one."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(12, 4))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        names = [f"{prefix}{kind}" for kind in "qkv"]
        if all(name in state for name in names):
            state[prefix + "qkv"] = torch.cat([state.pop(name) for name in names])
        super()._load_from_state_dict(state, prefix, *rest)


class Counting(nn.Module):
    """Extra state beside a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.steps = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class Tied(nn.Module):
    """A head that shares the embedding's parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embedding.weight


class Nested(nn.Module):
    """All of the above below one root, so that names have prefixes."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()
        self.normalized = Normalized()
        self.renaming = Renaming()
        self.fused = Fused()
        self.recurrent = nn.LSTM(5, 7, num_layers=2, bidirectional=True)
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
