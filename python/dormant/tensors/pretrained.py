"""Checks for models of transformers without importing the library."""

from __future__ import annotations

import sys


def is_pretrained(model: object) -> bool:
    """Whether `model` is a model of transformers. False if the library was not imported.

    Example:
        >>> import torch
        >>> is_pretrained(torch.nn.Linear(1, 1))
        False
    """
    library = sys.modules.get("transformers.modeling_utils")
    kind = getattr(library, "PreTrainedModel", None)  # None while the library is being imported
    return isinstance(kind, type) and isinstance(model, kind)
