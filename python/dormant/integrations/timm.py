"""Models of timm from checkpoint files, read once and straight into their final memory."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from dormant.integrations.library import check_names, finish, imported
from dormant.materialization.options import Mmap, check_choice, check_dtype, checked_options
from dormant.quantization.api import Scheme, quantize
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback


def create_model(
    name: str,
    *,
    checkpoint_path: str | os.PathLike[str] = "",
    dtype: torch.dtype | None = None,
    quantization_config: Scheme | None = None,
    missing: Literal["init", "error"] = "error",
    unexpected: Literal["error", "ignore"] = "error",
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
            empty path loads none: the model is initialized.
        dtype: of floating point tensors, as `model.to(dtype)`; None keeps what timm makes.
        quantization_config: what `dormant.quantize` takes.
        missing: names that the checkpoint lacks: "error" refuses, as timm; "init" initializes them.
        unexpected: names that the model lacks: "error" refuses, as timm; "ignore" leaves them out.
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
        ValueError: an option is not one of those possible.
        KeyError: names that are missing or unexpected, all of them listed.
        RuntimeError: the model is unknown, or tensors have other shapes than the model's; from timm
            and torch.
        OSError: there is no such file, or the system could not read it.

    Example:
        >>> from dormant.integrations.timm import create_model
        >>> model = create_model("resnet10t", num_classes=3)
        >>> model.fc.weight.shape
        torch.Size([3, 512])
    """
    how = checked_options("create_model", memory_budget=memory_budget, mmap=mmap, progress=progress)
    check_dtype(dtype, "create_model")
    check_choice(missing, ("init", "error"), "missing", "create_model")
    check_choice(unexpected, ("error", "ignore"), "unexpected", "create_model")
    library = imported("timm")
    with lazy_init():
        model: torch.nn.Module = library.create_model(name, **options)
        path = os.fspath(checkpoint_path)
        # None of a file of numpy arrays, which the model itself loads.
        keys = library.models.load_checkpoint(model, path, strict=False) if path else None
    if keys is not None:
        check_names(
            "create_model",
            path,
            missing=keys.missing_keys if missing == "error" else (),
            unexpected=keys.unexpected_keys if unexpected == "error" else (),
            advice="Accept it with missing='init' or unexpected='ignore'.",
        )
    if quantization_config is not None:
        quantize(model, quantization_config)
    finish(model, how, dtype=dtype, materialize=materialize)
    return model
