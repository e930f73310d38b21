"""Llama configurations by size."""

from __future__ import annotations

from typing import Any

_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2},
    "1.1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "2.1B": {  # the same layers, twice as many
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 44,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "405B": {
        "vocab_size": 128256,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
    },
}


def llama(size: str, layers: int | None = None) -> Any:
    """A `LlamaForCausalLM` of this size, built in whatever context the caller set up.

    With `layers` it has so many of them instead.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    changes = {} if layers is None else {"num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES[size], **changes}))


def layer_count(size: str) -> int:
    """How many layers it has."""
    return _SIZES[size]["num_hidden_layers"]
