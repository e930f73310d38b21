"""Tensor-parallel sets: merges, splits and reshards the parts of a model, lazily.

A set is a list with one mapping from names to tensors for each rank, as in LLaMA's
`consolidated.NN.pth` files. Everything here composes `narrow`, `cat` and `clone`, so the results of
lazy tensors are lazy, and materializing one of them reads only the bytes that it is made from.

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
