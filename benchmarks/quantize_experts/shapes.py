"""Mixtures of experts of chosen shapes, and their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import dormant

_SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 256,
}
_WIDE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
_QWEN: dict[str, Any] = {"head_dim": 64, "tie_word_embeddings": False}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral, tiny": ("Mixtral", {**_SMALL, "intermediate_size": 512, "num_local_experts": 8}),
    "Qwen3-MoE, tiny": (
        "Qwen3Moe",
        {**_SMALL, **_QWEN, "moe_intermediate_size": 128, "num_experts": 16},
    ),
    # Two gigabytes in bfloat16.
    "Mixtral, 1B": (
        "Mixtral",
        {**_WIDE, "intermediate_size": 3584, "num_hidden_layers": 11, "num_local_experts": 8},
    ),
    "Mixtral, 4 layers": (
        "Mixtral",
        {**_WIDE, "intermediate_size": 3584, "num_hidden_layers": 4, "num_local_experts": 8},
    ),
    "Qwen3-MoE, 3 layers": (
        "Qwen3Moe",
        {
            **_WIDE,
            **_QWEN,
            "moe_intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    "Qwen3-30B-A3B": (
        "Qwen3Moe",
        {
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
    ),
}


def classes(shape: str) -> tuple[Any, Any]:
    """Class and configuration of the model."""
    import transformers

    family, sizes = SHAPES[shape]
    config = getattr(transformers, f"{family}Config")(**sizes)
    return getattr(transformers, f"{family}ForCausalLM"), config


def lazy(shape: str, layers: int | None = None) -> Any:
    """The model in bfloat16, from one seed."""
    kind, config = classes(shape)
    if layers is not None:
        config.num_hidden_layers = layers
    torch.manual_seed(0)
    with dormant.lazy_init(dtype=torch.bfloat16):
        return kind(config).eval()


def write(folder: str, shape: str) -> int:
    """Saves the model, its experts apart, as transformers' `save_pretrained` does; the bytes."""
    dormant.save(lazy(shape), folder, progress=False)
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def expert_names(model: torch.nn.Module) -> list[str]:
    """Names of the stacked parameters of a model that is not packed."""
    return [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
