"""transformers with a BitsAndBytesConfig, which leaves experts; then bitsandbytes packs each."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.quantize_experts.shapes import classes, expert_names

NAME = "transformers, then replace_parameter_4bit"
EXACT = True


def build(folder: str, shape: str) -> Any:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    kind, _ = classes(shape)
    model = kind.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    for name in expert_names(model):
        module, _, parameter = name.rpartition(".")
        replace_parameter_4bit(model.get_submodule(module), parameter, compress_statistics=True)
    return model.eval()
