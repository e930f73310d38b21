"""`dormant.quantize` of a lazy model, then `dormant.load`."""

from __future__ import annotations

from typing import Any

import dormant
from benchmarks.quantize_experts.shapes import lazy

NAME = "dormant"
EXACT = True


def build(folder: str, shape: str) -> Any:
    model = lazy(shape)
    dormant.quantize(model, "nf4")
    dormant.load(model, folder, missing="error", progress=False)
    return model
