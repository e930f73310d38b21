"""Rewrites fuzz/corpus/recipe: tensors as real models make them, for fuzz/recipe.cpp.

PYTHONPATH=python .venv/bin/python tests/lib/recipe_corpus.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import dormant
from dormant import _C

FOLDER = Path(__file__).parents[2] / "fuzz" / "corpus" / "recipe"


def llama() -> nn.Module:
    import transformers

    model: nn.Module = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=12,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
    )
    return model


def llama_embedding() -> torch.Tensor:
    return llama().get_parameter("model.embed_tokens.weight")


def llama_rotary_frequencies() -> torch.Tensor:
    return llama().get_buffer("model.rotary_emb.inv_freq")


def vision_transformer() -> torch.Tensor:
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=4, patch_size=2, embed_dim=6, depth=1, num_heads=2
    )
    weight: torch.Tensor = model.blocks[0].mlp.fc1.weight
    return weight


def swin_position_index() -> torch.Tensor:
    coords = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
    relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0).contiguous()
    relative[:, :, 0] += 1
    relative[:, :, 0] *= 3
    return relative.sum(-1)


def lstm_orthogonal() -> torch.Tensor:
    lstm = nn.LSTM(3, 4)
    nn.init.orthogonal_(lstm.weight_hh_l0)
    return lstm.weight_hh_l0


def truncated_normal() -> torch.Tensor:
    return nn.init.trunc_normal_(torch.empty(4, 5), std=0.02)


def lora() -> torch.Tensor:
    base, a, b = nn.Linear(6, 6), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
    nn.init.zeros_(b.weight)
    return base.weight.data + 2.0 * (b.weight.data @ a.weight.data)


def embedding_with_padding() -> torch.Tensor:
    return nn.Embedding(6, 4, padding_idx=2).weight


def rotary_table() -> torch.Tensor:
    inverse = 1.0 / (10000 ** (torch.arange(0, 6, 2).float() / 6))
    angles = torch.outer(torch.arange(5).float(), inverse)
    return torch.cat((angles, angles), dim=-1).cos()


def rotary_complex() -> torch.Tensor:
    angles = torch.outer(torch.arange(3.0), torch.linspace(0, 1, 4))
    return torch.polar(torch.ones_like(angles), angles)


def sinusoidal_positions() -> torch.Tensor:
    table = torch.zeros(5, 6)
    position = torch.arange(5.0).unsqueeze(1)
    scale = torch.exp(torch.arange(0, 6, 2) * (-math.log(10000.0) / 6))
    table[:, 0::2] = torch.sin(position * scale)
    table[:, 1::2] = torch.cos(position * scale)
    return table.unsqueeze(0).transpose(0, 1)


def causal_mask() -> torch.Tensor:
    return torch.full((4, 4), float("-inf")).triu(1).masked_fill_(torch.eye(4).bool(), 0.0)


def convolution() -> torch.Tensor:
    layer = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer.weight.data.to(torch.bfloat16)


def captured_values() -> torch.Tensor:
    table = torch.empty(6)
    table.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]))
    table[torch.tensor([1, 4])] = 0.5
    return table.mul_(torch.tensor(3.0))


def mixture_of_experts_order() -> torch.Tensor:
    scores = torch.softmax(torch.randn(4, 6), dim=-1)
    values, experts = torch.topk(scores, 2)
    return torch.zeros(4, 6).scatter_(1, experts, values / values.sum(-1, keepdim=True))


def spectral_norm() -> torch.Tensor:
    weight = torch.randn(4, 3)
    u = nn.functional.normalize(torch.randn(4), dim=0)
    v = nn.functional.normalize(weight.t() @ u, dim=0)
    return weight / torch.dot(u, weight @ v)


def linear_bits() -> torch.Tensor:
    weight = torch.randn(4, 8).clamp_(-1, 1)
    codes = ((weight + 1) * 7).round().to(torch.uint8)
    return codes[:, 0::2] * 16 + codes[:, 1::2]


RECIPES: list[Callable[[], torch.Tensor]] = [
    llama_embedding,
    llama_rotary_frequencies,
    vision_transformer,
    swin_position_index,
    lstm_orthogonal,
    truncated_normal,
    lora,
    embedding_with_padding,
    rotary_table,
    rotary_complex,
    sinusoidal_positions,
    causal_mask,
    convolution,
    captured_values,
    mixture_of_experts_order,
    spectral_norm,
    linear_bits,
]

# The numbers of c10::ScalarType.
DTYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex64: 9,
    torch.complex128: 10,
    torch.bool: 11,
    torch.bfloat16: 15,
}


def captured_line(tensor: torch.Tensor) -> str:
    values = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
    return " ".join([str(DTYPES[tensor.dtype]), *map(str, tensor.shape), "=", values.hex()])


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for make in RECIPES:
        torch.manual_seed(1)
        with dormant.lazy_init():
            tensor = make()
        if not dormant.is_lazy(tensor):
            raise SystemExit(f"{make.__name__} is not lazy")
        document, tensors = _C.dump(tensor)
        lines = [captured_line(tensor) for tensor in tensors]
        (FOLDER / make.__name__).write_text("\n".join([*lines, document.decode()]))


if __name__ == "__main__":
    main()
