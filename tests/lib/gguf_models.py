"""Tiny models of transformers as GGUF files, for every architecture that its tables know.

The values are random and no model's, so each way to read a file must make the same of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils as tables
from transformers.integrations.gguf import GGUF_ARCHS

VOCABULARY = 96
# A row is a super-block where tensors are quantized.
HIDDEN = 64
HEADS = 4

_BASE = {
    "context_length": 32,
    "block_count": 2,
    "feed_forward_length": 96,
    "embedding_length": HIDDEN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "vocab_size": VOCABULARY,
}


@dataclass(frozen=True)
class Case:
    """An architecture, and what its file says.

    Attributes:
        architecture: the file's `general.architecture`.
        values: by key, without the architecture; they replace those of `_BASE`.
        model: the class in transformers; None means AutoModelForCausalLM.
        name: the file's `general.name`.
    """

    architecture: str
    values: Mapping[str, Any] = field(default_factory=dict)
    model: str = "AutoModelForCausalLM"
    name: str = "tiny"

    def __str__(self) -> str:
        return (
            f"{self.architecture}-{self.model}" if "Auto" not in self.model else self.architecture
        )


_EXPERTS = {"expert_count": 4, "expert_used_count": 2}
_QWEN35 = {
    "attention.key_length": 16,
    "full_attention_interval": 2,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 32,
    "rope.freq_base": 1e4,
    "rope.dimension_count": 8,
    "rope.dimension_sections": [2, 1, 1, 0],
}
_T5 = {
    "attention.key_length": 16,
    "attention.relative_buckets_count": 8,
    "decoder_start_token_id": 0,
}
CASES = (
    Case("llama", {"rope.dimension_count": HIDDEN // HEADS}),
    Case("llama", {"attention.head_count_kv": HEADS, "rope.dimension_count": HIDDEN // HEADS}),
    Case("gemma4", {"attention.key_length": 16, "attention.sliding_window": 8}),
    Case(
        "lfm2", {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3, "rope.freq_base": 1e4}
    ),
    Case("qwen35", _QWEN35),
    Case(
        "qwen35moe",
        {
            **_QWEN35,
            **_EXPERTS,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 32,
        },
    ),
    Case("qwen2"),
    Case("qwen2moe", _EXPERTS),
    Case("qwen3"),
    Case("qwen3moe", {**_EXPERTS, "attention.key_length": 16}),
    Case("falcon", {"attention.head_count_kv": 1}),
    Case("phi3", {"vocab_size": 32064}),  # for the padding that its class has by default
    Case("bloom"),
    Case("bloom", model="BloomModel"),
    Case("stablelm"),
    Case("gpt2"),
    Case("starcoder2"),
    Case(
        "mamba",
        {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 4, "ssm.inner_size": 128},
    ),
    Case("nemotron"),
    Case("gemma2", {"attention.key_length": 16, "attention.sliding_window": 8}),
    Case("gemma3", {"attention.key_length": 16, "attention.sliding_window": 8}),
    Case("t5", _T5, "AutoModelForSeq2SeqLM"),
    Case("t5encoder", _T5, "T5EncoderModel"),
    Case("t5", _T5, "AutoModelForSeq2SeqLM", name="umt5"),
    Case("t5encoder", _T5, "UMT5EncoderModel", name="umt5"),
    Case(
        "minimax-m2",
        {
            **_EXPERTS,
            "rope.dimension_count": 8,
            "attention.key_length": 16,
            "expert_gating_func": 2,
        },
    ),
)


def write_header(case: Case, path: Path) -> gguf.GGUFWriter:
    """A writer with the metadata of a case."""
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_name(case.name)
    for key, value in {**_BASE, **case.values}.items():
        full = f"{case.architecture}.{key}"
        if isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, list):
            writer.add_array(full, value)
        else:
            writer.add_uint32(full, value)
    writer.add_array("tokenizer.ggml.tokens", [f"token{i}" for i in range(VOCABULARY)])
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def configuration(case: Case, folder: Path) -> Any:
    """The configuration that transformers makes of the metadata."""
    path = folder / "header.gguf"
    finish(write_header(case, path))
    return transformers.AutoConfig.from_pretrained(folder, gguf_file=path.name)


def model_class(case: Case) -> Any:
    """A function from a configuration to a model."""
    kind = getattr(transformers, case.model)
    return kind.from_config if hasattr(kind, "from_config") else kind


def tensors(case: Case, model: Any) -> dict[str, numpy.ndarray]:
    """Values for each tensor of a file of this model, in the layouts of llama.cpp."""
    processor = tables.TENSOR_PROCESSORS.get(case.architecture, tables.TensorProcessor)(
        config=model.config.to_dict()
    )
    # Those of newer architectures have other names for a model's type than gguf.
    newer = case.architecture if case.architecture in GGUF_ARCHS else None
    names = tables.get_gguf_hf_weights_map(model, processor, newer)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    random = numpy.random.default_rng(len(names))
    found: dict[str, numpy.ndarray] = {}
    for name, target in names.items():
        if target not in shapes or (
            target == "lm_head.weight" and model.config.tie_word_embeddings
        ):
            continue
        shape = shapes[target]
        if name.endswith("ffn_gate_up_exps"):
            half = (shape[0], shape[1] // 2, shape[2])
            for part in ("gate", "up"):
                values = random.standard_normal(half).astype(numpy.float32)
                found[name.replace("gate_up", part) + ".weight"] = values
            continue
        if "_exps" in name:
            name = name.removesuffix(".weight") + ".weight"
            if "down" not in name:
                shape = (shape[0], shape[1] // 2, shape[2])
        if "ffn_gate_inp_shexp" in name:
            shape = shape[1:]
        if "ssm_conv1d.weight" in name or "shortconv.conv.weight" in name:
            shape = (shape[0], shape[2])
        if case.architecture == "gpt2" and len(shape) == 2 and name.startswith("blk."):
            shape = shape[::-1]
        values = random.standard_normal(shape).astype(numpy.float32)
        found[name] = -numpy.exp(values) if "ssm_a" in name else values
    for target, shape in shapes.items():
        if target.endswith(".linear_attn.dt_bias"):  # which gguf's tables lack
            name = f"blk.{target.split('.')[2]}.ssm_dt.bias"
            found[name] = random.standard_normal(shape).astype(numpy.float32)
    return found


def write_model(case: Case, folder: Path, kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """A file of the architecture, its matrices in blocks of `kind` where they fit."""
    config = configuration(case, folder)
    with torch.device("meta"):
        model = model_class(case)(config)
    path = folder / "model.gguf"
    writer = write_header(case, path)
    for name, values in tensors(case, model).items():
        block = gguf.GGML_QUANT_SIZES[kind][0] if kind is not None else 1
        if kind is not None and values.ndim > 1 and values.shape[-1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    finish(writer)
    return path
