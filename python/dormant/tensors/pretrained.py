"""Which models are of transformers, asked without importing it."""

from __future__ import annotations

import sys


def is_pretrained(model: object) -> bool:
    """Whether `model` is one of transformers; where that was not imported, nothing is.

    Example:
        >>> import torch
        >>> is_pretrained(torch.nn.Linear(1, 1))
        False
    """
    library = sys.modules.get("transformers.modeling_utils")
    kind = getattr(library, "PreTrainedModel", None)  # None as long as it is being imported
    return isinstance(kind, type) and isinstance(model, kind)
