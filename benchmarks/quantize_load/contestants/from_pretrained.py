"""transformers with a BitsAndBytesConfig: what the others are compared with."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.load.stored import Stored
from benchmarks.quantize_load.schemes import for_transformers

NAME = "transformers + bitsandbytes"
EXACT = True


def build(stored: Stored, scheme: str) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(
        stored.folder, quantization_config=for_transformers(scheme), dtype=torch.bfloat16
    )
