"""transformers' own way."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.load.stored import Stored

NAME = "transformers from_pretrained"
EXACT = True


def build(stored: Stored, dtype: torch.dtype) -> Any:
    if stored.form == "4 parts":
        raise NotImplementedError("it does not read tensor-parallel sets")
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(stored.folder, dtype=dtype)
