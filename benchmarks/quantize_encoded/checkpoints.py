"""Encoded checkpoints in the shapes of published models, of random bytes, written in a stream."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dormant

_POOL = 32 << 20  # bytes of random numbers, which files repeat
_STEP = 1_048_573  # a prime: where the next tensor begins in them
_BLOCK = 128  # rows and columns of fp8 that share a scale
_GROUP = 32  # elements of mxfp4 that share one

DEEPSEEK: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "torch_dtype": "bfloat16",
}
TINY_DEEPSEEK: dict[str, Any] = {
    **DEEPSEEK,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 128,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "vocab_size": 512,
}
GPT_OSS: dict[str, Any] = {"num_hidden_layers": 24, "num_local_experts": 32}
TINY_GPT_OSS: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
}
LLAMA: dict[str, int] = {
    "embedding_length": 4096,
    "feed_forward_length": 14336,
    "block_count": 32,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
    "vocab_size": 128256,
}
TINY_LLAMA: dict[str, int] = {
    "embedding_length": 512,
    "feed_forward_length": 1024,
    "block_count": 2,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: `pool` names the random numbers that it is of."""

    name: str
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    pool: str

    @property
    def nbytes(self) -> int:
        sizes = {"F8_E4M3": 1, "U8": 1, "BF16": 2, "F32": 4}
        return math.prod(self.shape) * sizes[self.dtype]


def deepseek(folder: str, sizes: dict[str, Any]) -> int:
    """An fp8 folder of DeepSeek-V3, expert by expert; its bytes."""
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(**sizes)
    said = config.to_dict() | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [_BLOCK, _BLOCK],
        },
    }
    return _write(Path(folder), said, _fp8_tensors(config))


def _fp8_tensors(config: Any) -> Iterator[Stored]:
    for name, tensor in lazy(config).state_dict().items():
        if tensor.dim() == 3:
            module, _, stack = name.rpartition(".")
            rows = tensor.shape[1] // 2 if stack == "gate_up_proj" else tensor.shape[1]
            parts = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
            for expert in range(tensor.shape[0]):
                for part in parts:
                    yield from _fp8(f"{module}.{expert}.{part}.weight", rows, tensor.shape[2])
        elif "_proj" in name and tensor.dim() == 2:
            yield from _fp8(name, *tensor.shape)
        else:
            yield _plain(name, tensor)


def _fp8(name: str, rows: int, columns: int) -> Iterator[Stored]:
    yield Stored(name, "F8_E4M3", (rows, columns), "fp8")
    scales = (-(-rows // _BLOCK), -(-columns // _BLOCK))
    yield Stored(f"{name}_scale_inv", "F32", scales, "scales")


def gpt_oss(folder: str, sizes: dict[str, Any]) -> int:
    """A folder of gpt-oss, its experts in mxfp4; its bytes."""
    from transformers import GptOssConfig

    config = GptOssConfig(**sizes)
    said = config.to_dict() | {
        "architectures": ["GptOssForCausalLM"],
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "mxfp4"},
    }
    return _write(Path(folder), said, _mxfp4_tensors(config))


def _mxfp4_tensors(config: Any) -> Iterator[Stored]:
    for name, tensor in lazy(config).state_dict().items():
        if tensor.dim() == 3:
            experts, columns, rows = tensor.shape  # transposed in the model
            groups = (experts, rows, columns // _GROUP)
            yield Stored(f"{name}_blocks", "U8", (*groups, _GROUP // 2), "bytes")
            yield Stored(f"{name}_scales", "U8", groups, "exponents")
        else:
            yield _plain(name, tensor)


def _plain(name: str, tensor: torch.Tensor) -> Stored:
    dtype = "BF16" if tensor.dtype is torch.bfloat16 else "F32"
    return Stored(name, dtype, tuple(tensor.shape), "bfloat16" if dtype == "BF16" else "scales")


def lazy(config: Any) -> Any:
    """The model of this configuration in bfloat16."""
    from transformers import AutoModelForCausalLM

    with dormant.lazy_init():
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def llama(folder: str, sizes: dict[str, int]) -> int:
    """A Llama in `model.gguf`, in the types of Q4_K_M; its bytes."""
    import gguf
    import numpy

    kinds = gguf.GGMLQuantizationType
    path = Path(folder, "model.gguf")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.context_length", 2048)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    random = numpy.random.default_rng(0)
    blocks: dict[str, Any] = {}

    def add(name: str, rows: int, columns: int, kind: str) -> None:
        number = kinds[kind]
        elements, size = gguf.GGML_QUANT_SIZES[number]
        if kind not in blocks:
            pool = random.integers(0, 256, (1 << 15, size), dtype=numpy.uint8)
            # The scales, float16, are numbers around 0.001.
            at = (0, 2) if kind == "Q4_K" else (size - 2,)
            for byte in at:
                pool[:, byte + 1] = 0x14
            blocks[kind] = pool
        count = rows * columns // elements
        data = numpy.resize(blocks[kind], (count, size)).reshape(rows, -1)
        writer.add_tensor(name, data, raw_dtype=number)

    hidden, wide = sizes["embedding_length"], sizes["feed_forward_length"]
    heads = sizes["attention.head_count"]
    keys = hidden // heads * sizes["attention.head_count_kv"]
    add("token_embd.weight", sizes["vocab_size"], hidden, "Q4_K")
    add("output.weight", sizes["vocab_size"], hidden, "Q6_K")
    writer.add_tensor("output_norm.weight", numpy.ones(hidden, dtype=numpy.float32))
    layers = sizes["block_count"]
    for layer in range(layers):
        # llama.cpp's rule: half of the layers have more bits for these two.
        more = layer < layers // 8 or layer >= 7 * layers // 8 or layer % 3 == 2
        block = f"blk.{layer}"
        add(f"{block}.attn_q.weight", hidden, hidden, "Q4_K")
        add(f"{block}.attn_k.weight", keys, hidden, "Q4_K")
        add(f"{block}.attn_v.weight", keys, hidden, "Q6_K" if more else "Q4_K")
        add(f"{block}.attn_output.weight", hidden, hidden, "Q4_K")
        add(f"{block}.ffn_gate.weight", wide, hidden, "Q4_K")
        add(f"{block}.ffn_up.weight", wide, hidden, "Q4_K")
        add(f"{block}.ffn_down.weight", hidden, wide, "Q6_K" if more else "Q4_K")
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{norm}.weight", numpy.ones(hidden, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def _write(folder: Path, config: dict[str, Any], tensors: Iterator[Stored]) -> int:
    """Files of some gigabytes each, an index, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    pools = _pools()
    files: list[list[Stored]] = [[]]
    for tensor in tensors:
        if sum(each.nbytes for each in files[-1]) > 4 << 30:
            files.append([])
        files[-1].append(tensor)
    places, total, begin = {}, 0, 0
    for number, stored in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        header, offset = {}, 0
        for tensor in stored:
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (offset, offset + tensor.nbytes),
            }
            offset += tensor.nbytes
            places[tensor.name] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in stored:
                pool, left = pools[tensor.pool], tensor.nbytes
                begin = (begin + _STEP) % (len(pool) // 8) * 8 % len(pool)
                while left:
                    part = pool[begin : begin + left]
                    file.write(part)
                    left -= len(part)
                    begin = 0
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _pools() -> dict[str, memoryview]:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (_POOL,), dtype=torch.uint8, generator=generator)
    normal = torch.randn(_POOL // 4, generator=generator)
    found = {
        "bytes": raw,
        "fp8": (normal * 20).clamp(-400, 400).to(torch.float8_e4m3fn),
        "exponents": raw % 8 + 118,
        "scales": torch.rand(_POOL // 16, generator=generator) * 0.002 + 0.0001,
        "bfloat16": (normal * 0.02).to(torch.bfloat16),
    }
    return {
        name: memoryview(tensor.view(torch.uint8).numpy()).cast("B")
        for name, tensor in found.items()
    }
