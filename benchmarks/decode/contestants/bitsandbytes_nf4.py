"""nf4 of bitsandbytes, blocks of 64: its dequantize_4bit."""

from __future__ import annotations

import torch

NAME = "bitsandbytes nf4"
EXACT = True
LIBRARY = "bitsandbytes"
CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def tensors(rows: int, columns: int) -> dict[str, torch.Tensor]:
    try:
        from bitsandbytes import functional
    except ImportError as missing:
        raise NotImplementedError("bitsandbytes is not installed") from missing
    packed, state = functional.quantize_4bit(
        torch.randn(rows, columns, dtype=torch.bfloat16), blocksize=64, quant_type="nf4"
    )
    described = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    return {"weight": packed, **described}


def reference(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    from bitsandbytes import functional

    described = {
        name.removeprefix("weight."): tensor for name, tensor in layer.items() if name != "weight"
    }
    state = functional.QuantState.from_dict(described, torch.device("cpu"))
    weight: torch.Tensor = functional.dequantize_4bit(layer["weight"], state)
    return weight
