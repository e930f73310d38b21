"""The schemes, as each library calls them."""

from __future__ import annotations

from typing import Any

SCHEMES = ("nf4", "nf4 nested", "int8")


def for_dormant(scheme: str) -> Any:
    """What `dormant.quantize` takes."""
    import dormant

    if scheme == "int8":
        return "int8"
    return dormant.FourBit(kind="nf4", nested=scheme == "nf4 nested")


def for_transformers(scheme: str) -> Any:
    """What `from_pretrained` takes."""
    import transformers

    if scheme == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=scheme == "nf4 nested",
    )
