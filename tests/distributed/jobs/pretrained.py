"""Models of transformers, divided among the ranks by its own DistributedConfig."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import PermuteForRope, WeightConverter
from transformers.distributed.configuration_utils import DistributedConfig

import dormant

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_GPT_OSS = {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]}
_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}

FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "mixtral": lambda: MixtralConfig(**_SIZES, **_EXPERTS),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZES, **_QWEN),
    "gpt_oss": lambda: GptOssConfig(**_SIZES, **_EXPERTS, **_GPT_OSS, sliding_window=8),
}
WAYS: dict[str, dict[str, int]] = {
    "TP": {"tp_size": 2, "fsdp_size": 1},
    "FSDP2": {"tp_size": 1, "fsdp_size": 2},
    "EP": {"tp_size": 2, "fsdp_size": 1, "ep_size": 2},
}
TOKENS = [[1, 5, 9, 3]]


def permute_projections() -> None:
    """Has transformers permute the rows of Llama's queries and keys when it loads them."""
    register_checkpoint_conversion_mapping(
        "llama",
        [
            WeightConverter(f"{name}_proj.weight", f"{name}_proj.weight", [PermuteForRope()])
            for name in ("q", "k")
        ],
        overwrite=True,
    )


def parts_of(model: Any) -> dict[str, torch.Tensor]:
    """What a rank holds of each parameter and buffer."""
    return {
        name: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


def whole(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, put together from all ranks."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


def load(path: str, way: str, permuted: bool, folder: str = "") -> dict[str, Any]:
    """The library's `from_pretrained`, inside the context and without; saved to `folder`."""
    # As torchrun does: transformers looks there, too.
    os.environ.update(RANK=str(dist.get_rank()), LOCAL_RANK=str(dist.get_rank()), WORLD_SIZE="2")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    if permuted:
        permute_projections()
    tokens = torch.tensor(TOKENS)
    found: dict[str, Any] = {}
    for how in ("eagerly", "lazily"):
        configuration = DistributedConfig(**WAYS[way])
        if how == "eagerly":
            model = AutoModelForCausalLM.from_pretrained(path, distributed_config=configuration)
        else:
            with dormant.lazy_init():
                model = AutoModelForCausalLM.from_pretrained(path, distributed_config=configuration)
            found["real"] = [
                name for name, tensor in model.named_parameters() if not dormant.is_lazy(tensor)
            ]
            report = dormant.materialize(model)
            found["read"] = report.read_bytes
            if folder:
                dormant.save({"model": model}, folder, format="dcp")
                found["saved"] = dict(dormant.open_checkpoint(folder, key="model"))
                dormant.materialize(found["saved"])
        found[how] = parts_of(model)
        found[f"{how} whole"] = whole(model)
        output = model.eval()(tokens).logits.detach()
        found[f"{how} output"] = output.full_tensor() if isinstance(output, DTensor) else output
    found["size"] = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return found
