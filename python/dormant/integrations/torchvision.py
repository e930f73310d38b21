"""Models of torchvision from checkpoint files; each tensor is read once, into its final memory."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch

from dormant.integrations.library import finish, imported
from dormant.loading.api import load
from dormant.loading.state import CheckpointLike
from dormant.materialization.options import Mmap, check_choice, check_dtype, checked_options
from dormant.quantization.api import Scheme, quantize
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback
from dormant.tensors.names import Rename

# DenseNet files from before torchvision 0.2 have "norm.1" instead of "norm1" (densenet.py there).
_OLD_DENSENET = re.compile(
    r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))"
)


def get_model(
    name: str,
    *,
    checkpoint: CheckpointLike | None = None,
    missing: Literal["warn", "init", "error"] = "error",
    unexpected: Literal["error", "ignore"] = "error",
    rename: Rename | None = None,
    dtype: torch.dtype | None = None,
    quantization_config: Scheme | None = None,
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    **options: Any,
) -> torch.nn.Module:
    """Creates the same model as `torchvision.models.get_model(name)` and `load_state_dict`.

    Args:
        name: name of the architecture, such as "resnet50".
        checkpoint: a file with a state dict, such as those that torchvision publishes, or a file
            with a mapping that contains one, as its training scripts write; or anything else that
            `dormant.load` takes. For the averaged weights of such a file, pass
            `dormant.open_checkpoint(path, key="model_ema")`. If None, the model is initialized.
        missing: what to do with missing keys: "error" raises an error, "init" initializes them,
            "warn" does so with a warning that names them.
        unexpected: what to do with unexpected keys: "error" raises an error, "ignore" leaves them
            out.
        rename: as for `dormant.load`; {"module.": ""} for averaged weights. None means the model's
            own names, and for DenseNet also those of old files.
        dtype: dtype of floating-point tensors; None keeps float32.
        quantization_config: what `dormant.quantize` takes.
        materialize: False leaves the model lazy.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        mmap: as for `dormant.load`.
        progress: as for `dormant.load`.
        **options: other arguments of `torchvision.models.get_model` (num_classes, ...).

    Returns:
        The model, in training mode, as from the library.

    Raises:
        ImportError: torchvision is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: the model is unknown, an option has a value that is not supported, or the file
            is damaged.
        KeyError: keys are missing, unexpected or have another shape; all of them are listed.
        OSError: the system could not read the file.

    Example:
        >>> from dormant.integrations.torchvision import get_model
        >>> model = get_model("squeezenet1_1", num_classes=3, materialize=False)
        >>> model.classifier[1].weight.shape
        torch.Size([3, 512, 1, 1])
    """
    how = checked_options("get_model", memory_budget=memory_budget, mmap=mmap, progress=progress)
    check_dtype(dtype, "get_model")
    check_choice(missing, ("warn", "init", "error"), "missing", "get_model")
    check_choice(unexpected, ("error", "ignore"), "unexpected", "get_model")
    library = imported("torchvision")
    with lazy_init():
        # Prevents an architecture from downloading a backbone.
        model: torch.nn.Module = library.models.get_model(name, **{"weights": None, **options})
    if quantization_config is not None:
        quantize(model, quantization_config)
    if checkpoint is None:
        finish(model, how, dtype=dtype, materialize=materialize)
        return model
    load(
        model,
        checkpoint,
        missing=missing,
        unexpected=unexpected,
        rename=_densenet_name if rename is None and name.startswith("densenet") else rename,
        dtype=dtype,
        materialize=materialize,
        memory_budget=memory_budget,
        mmap=mmap,
        progress=progress,
    )
    return model


def _densenet_name(name: str) -> str:
    found = _OLD_DENSENET.fullmatch(name)
    return name if found is None else found[1] + found[2]
