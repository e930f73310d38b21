"""Tensor-parallel sets: parts of a model merged, split and divided anew, lazily.

A set is a list with a mapping of names to tensors for each rank, as LLaMA's `consolidated.NN.pth`
files hold them. Everything here composes `narrow`, `cat` and `clone`: of lazy tensors the results
are lazy, and reading one of them reads only the bytes it is made of.

Example:
    >>> import torch
    >>> from dormant import tensor_parallel
    >>> whole = {"wq.weight": torch.arange(12.0).view(6, 2), "norm.weight": torch.ones(2)}
    >>> parts = tensor_parallel.split(whole, 2)
    >>> [part["wq.weight"].shape for part in parts]
    [torch.Size([3, 2]), torch.Size([3, 2])]
    >>> [part["wq.weight"].shape[0] for part in tensor_parallel.reshard(parts, 4)]
    [2, 2, 1, 1]
    >>> torch.equal(tensor_parallel.merge(parts)["wq.weight"], whole["wq.weight"])
    True
"""

from __future__ import annotations

from dormant.tensor_parallel.rules import (
    COLUMN,
    EMBEDDING,
    LLAMA,
    LLAMA3,
    REPLICATED,
    ROW,
    VOCABULARY,
    Replicated,
    Reshape,
    Rule,
    Rules,
    Sharded,
)
from dormant.tensor_parallel.sets import apply_diffs, merge, reshard, split

__all__ = [
    "COLUMN",
    "EMBEDDING",
    "LLAMA",
    "LLAMA3",
    "REPLICATED",
    "ROW",
    "VOCABULARY",
    "Replicated",
    "Reshape",
    "Rule",
    "Rules",
    "Sharded",
    "apply_diffs",
    "merge",
    "reshard",
    "split",
]
