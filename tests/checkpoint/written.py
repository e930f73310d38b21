"""Checkpoints that the tests write, and what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

import dormant
from compare import assert_same_bits

STATE = {
    "embed.weight": torch.randn(50, 16),
    "layer.weight": torch.randn(16, 16).bfloat16(),
    "layer.bias": torch.randn(16, dtype=torch.float64),
    "steps": torch.tensor(7),
}


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path)
    return path


def index(folder: Path, name: str, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, state in shards.items():
        write(state, folder / file)
    weights = {tensor: file for file, state in shards.items() for tensor in state}
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    return path


def assert_holds(checkpoint: dormant.Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    state = dict(checkpoint)
    assert state.keys() == expected.keys()
    assert all(dormant.is_lazy(tensor) for tensor in state.values())
    dormant.materialize(state)
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)


PARTS = [
    {
        "layers.0.attention.wq.weight": torch.randn(4, 6),
        "layers.0.attention.wo.weight": torch.randn(6, 3),
        "norm.weight": torch.arange(6.0),
    }
    for _ in range(3)
]
WHOLE = {
    name: torch.cat([part[name] for part in PARTS], dim)
    for name, dim in (("layers.0.attention.wq.weight", 0), ("layers.0.attention.wo.weight", 1))
} | {"norm.weight": PARTS[0]["norm.weight"]}


def write_set(folder: Path, name: str, parts: list[dict[str, torch.Tensor]] = PARTS) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for rank, part in enumerate(parts):
        path = folder / name.format(rank)
        torch.save({"model": part} if "model" in name else part, path)
        paths.append(path)
    return paths
