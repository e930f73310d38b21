"""Models of timm from checkpoint files; each tensor is read once, into its final memory."""

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
    """Creates the same model as `timm.create_model(name, checkpoint_path=...)`, bit for bit.

    Args:
        name: name of the architecture.
        checkpoint_path: a safetensors file or a file of torch.save, which contains a state dict, or
            a mapping with one under "state_dict_ema", "model_ema", "state_dict" or "model", as timm
            reads them. If the path is empty, the model is initialized.
        dtype: dtype of floating-point tensors, as `model.to(dtype)`; None keeps timm's dtypes.
        quantization_config: what `dormant.quantize` takes.
        missing: what to do with missing keys: "error" raises an error, as timm does; "init"
            initializes them.
        unexpected: what to do with unexpected keys: "error" raises an error, as timm does; "ignore"
            leaves them out.
        materialize: False leaves the model lazy.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        mmap: as for `dormant.load`.
        progress: as for `dormant.load`.
        **options: other arguments of `timm.create_model` (num_classes, img_size, ...).

    Returns:
        The model, in training mode, as from the library.

    Raises:
        ImportError: timm is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: an option has a value that is not supported.
        KeyError: keys are missing or unexpected; all of them are listed.
        RuntimeError: the model is unknown, or tensors do not have the shapes of the model; raised
            by timm and torch.
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
