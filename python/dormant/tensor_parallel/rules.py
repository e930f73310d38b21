"""Rules say how the tensors of a model are divided among the ranks of tensor parallelism."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch


@dataclass(frozen=True)
class Sharded:
    """Each part holds a contiguous range of a dimension, in the order of the parts.

    If the parts cannot be equal, the first ones are larger, as in `torch.tensor_split`.

    Attributes:
        dim: the dimension that is divided.
        unit: a part holds a multiple of this many indices, such as the size of a head if parts
            must hold whole heads.
    """

    dim: int
    unit: int = 1


@dataclass(frozen=True)
class Replicated:
    """Every part holds the whole tensor."""


Reshape: TypeAlias = Callable[[Sequence[torch.Tensor], int], Sequence[torch.Tensor]]
"""A rule of one's own: from the tensor's parts, and how many are wanted, to these."""

Rule: TypeAlias = Sharded | Replicated | Reshape
Rules: TypeAlias = Mapping[str, Rule]

COLUMN = Sharded(0)
"""A layer whose outputs are divided: weight (outputs, inputs) and bias."""

ROW = Sharded(1)
"""The weight of a layer whose inputs are divided. Its bias is added after the sum: replicated."""

EMBEDDING = Sharded(1)
"""A table (vocabulary, features) divided by features, as fairscale's ParallelEmbedding."""

VOCABULARY = Sharded(0)
"""A table (vocabulary, features) divided by entries, as Megatron's VocabParallelEmbedding."""

REPLICATED = Replicated()

# The classes of LLaMA's and LLaMA2-Accessory's models, and the dimensions along which they divide,
# are in facebookresearch/llama, llama/model.py; Alpha-VLLM/LLaMA2-Accessory,
# accessory/model/LLM/*.py, accessory/model/peft.py and accessory/util/tensor_parallel.py.
LLAMA: Rules = {
    # Encoders that every rank holds; they come first, since they too have layers named "norm".
    "clip.*": REPLICATED,
    "openclip_convnext_xxl.*": REPLICATED,
    "dinov2_vitg14.*": REPLICATED,
    "qformer.*": REPLICATED,
    "clip_proj.*": REPLICATED,
    "clip_proj_norm.*": REPLICATED,
    "qformer_proj.*": REPLICATED,
    "visual_query": REPLICATED,
    "visual_blocks.*": REPLICATED,
    "visual_proj.*": REPLICATED,
    "visual_proj_norm.*": REPLICATED,
    "start_img": REPLICATED,
    "end_img": REPLICATED,
    # LLaMA-Adapter: a gate for each head of this rank.
    "prefix_gate": Sharded(1),
    "prefix_new_gate": REPLICATED,
    "prefix": REPLICATED,
    # LoRA: of the two factors, the one on the side of the divided dimension is divided.
    "w[qkv13].lora_a.weight": REPLICATED,
    "w[qkv13].lora_b.weight": COLUMN,
    "w[o2].lora_a.weight": ROW,
    "w[o2].lora_b.weight": REPLICATED,
    # The transformer.
    "w[qkv13].weight": COLUMN,
    "w[qkv13].bias": COLUMN,
    "w[o2].weight": ROW,
    "w[o2].bias": REPLICATED,
    "tok_embeddings.weight": EMBEDDING,
    "output.weight": COLUMN,
    "output.bias": COLUMN,
    "attention_norm.weight": REPLICATED,
    "ffn_norm.weight": REPLICATED,
    "norm.weight": REPLICATED,
    "rope.freqs": REPLICATED,
}
"""Rules of LLaMA 1 and 2, and of LLaMA2-Accessory's biases, LoRA, adapters and encoders."""

LLAMA3: Rules = {**LLAMA, "tok_embeddings.weight": VOCABULARY}
"""Rules of LLaMA 3, which divides its embedding by vocabulary."""


def match(rules: Rules, name: str) -> Rule | None:
    """The first rule whose pattern matches a tensor's name.

    Args:
        rules: patterns to rules, in order. A pattern is as in `fnmatch`, where `*` stands for any
            text; it must match the whole name, or everything after one of its dots.
        name: the tensor's name.

    Returns:
        The rule; None if no pattern matches.

    Example:
        >>> match({"w[qkv].weight": COLUMN}, "layers.0.attention.wq.weight")
        Sharded(dim=0, unit=1)
    """
    for pattern, rule in rules.items():
        if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}"):
            return rule
    return None


def llama_rules(parts: Sequence[Mapping[str, torch.Tensor]]) -> Rules:
    """LLaMA's rules, or those of its version 3 if the shapes of several parts show this.

    Args:
        parts: the tensors of each rank. A single part has the same shapes in every version.

    Returns:
        `LLAMA3` if the embedding of each part has as many features as the norm; else `LLAMA`.
    """
    if len(parts) < 2:
        return LLAMA
    for name, embedding in parts[0].items():
        prefix = name.removesuffix("tok_embeddings.weight")
        norm = parts[0].get(f"{prefix}norm.weight")
        if prefix != name and norm is not None and embedding.shape[1:] == norm.shape:
            return LLAMA3
    return LLAMA
