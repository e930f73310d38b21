"""Models of timm from checkpoint files, read once and straight into their final memory."""

from __future__ import annotations

import os
from typing import Any

import torch

from dormant.integrations.library import finish, imported
from dormant.materialization.options import Mmap, checked_options
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback


def create_model(
    name: str,
    *,
    checkpoint_path: str | os.PathLike[str] = "",
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    **options: Any,
) -> torch.nn.Module:
    """The model that `timm.create_model(name, checkpoint_path=...)` gives, bit for bit.

    Args:
        name: of the architecture.
        checkpoint_path: a safetensors file or one of torch.save: a state dict or a mapping with one
            under "state_dict_ema", "model_ema", "state_dict" or "model", as timm reads them. The
            empty path loads none: the model is initialised.
        materialize: False leaves the model lazy.
        memory_budget: bytes that this may take besides the final tensors, a number or text like
            "2GiB"; None sets no bound.
        mmap: as for `dormant.load`.
        progress: as for `dormant.load`.
        **options: what `timm.create_model` takes besides (num_classes, img_size, ...).

    Returns:
        The model, in training mode as the library's.

    Raises:
        ImportError: timm is not installed.
        TypeError: an argument is of a type that cannot be used.
        RuntimeError: the model is unknown, or the checkpoint does not fit it; from timm and torch.
        OSError: there is no such file, or the system could not read it.

    Example:
        >>> from dormant.integrations.timm import create_model
        >>> model = create_model("resnet10t", num_classes=3)
        >>> model.fc.weight.shape
        torch.Size([3, 512])
    """
    how = checked_options("create_model", memory_budget=memory_budget, mmap=mmap, progress=progress)
    library = imported("timm")
    with lazy_init():
        model: torch.nn.Module = library.create_model(
            name, checkpoint_path=os.fspath(checkpoint_path), **options
        )
    finish(model, how, materialize=materialize)
    return model
