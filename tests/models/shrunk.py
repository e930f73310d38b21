"""Configurations of transformers made small by rule, for breadth beyond the catalogs."""

from __future__ import annotations

import importlib
from typing import Any

import torch

# Sizes by the names that configurations have for them; what is smaller already stays.
_HIDDEN, _INNER, _VOCABULARY = 32, 48, 96
_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "embed_dim"), _HIDDEN),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "embedding_size"), _HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size"), _INNER),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dim_feedforward"), _INNER),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), _VOCABULARY),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "mamba_dt_rank", "ssm_state_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_key_value_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
    "num_nextn_predict_layers": 0,
}
# What does not fit the sizes above, and is given by hand.
_OPTIONS: dict[str, dict[str, Any]] = {
    "Ernie4_5_VLMoeForConditionalGeneration": {
        "text_config": {
            "num_hidden_layers": 3,
            "moe_intermediate_size": [16, 16],
            "moe_k": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            },
        }
    },
    "GraniteMoeHybridForCausalLM": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "shared_intermediate_size": 16,
    },
    "HunYuanMoEV1ForCausalLM": {
        "head_dim": 8,
        "moe_topk": [2, 2],
        "moe_intermediate_size": [16, 16],
    },
    "LagunaForCausalLM": {
        "layer_types": ["full_attention", "full_attention"],
        "num_attention_heads_per_layer": [4, 4],
    },
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
}
# They follow from the number of layers, which is another now.
_DERIVED = ("layer_types", "mlp_layer_types")


def build(class_name: str) -> torch.nn.Module:
    """The model class of transformers of that name, with its own configuration made small."""
    kind: Any = getattr(importlib.import_module("transformers"), class_name)
    options = _shrunk(kind.config_class())
    for name, value in _OPTIONS.get(class_name, {}).items():
        options[name] = {**options[name], **value} if isinstance(value, dict) else value
    model: torch.nn.Module = kind(kind.config_class(**options))
    return model


def _shrunk(config: Any) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in _DERIVED or name in ("transformers_version", "architectures", "dtype"):
            continue
        if hasattr(nested := getattr(config, name, None), "to_dict"):
            small[name] = {**_shrunk(nested), "model_type": nested.model_type}
        elif isinstance(value, int) and not isinstance(value, bool):
            most = _VOCABULARY - 1 if name.endswith("_token_id") else _SIZES.get(name, value)
            small[name] = min(value, most)
        elif name != "model_type":
            small[name] = value
    return small
