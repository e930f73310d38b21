"""Models and pipelines of diffusers from local folders; each tensor is read and cast once."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from dormant.integrations.library import (
    check_names,
    finish,
    imported,
    is_ours,
    local_folder,
)
from dormant.materialization.options import Mmap, check_choice, checked_options
from dormant.quantization.api import Scheme, quantize
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback


def from_pretrained(
    model_class: Any,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    quantization_config: Scheme | None = None,
    missing: Literal["init", "error"] = "init",
    unexpected: Literal["error", "ignore"] = "ignore",
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    **options: Any,
) -> Any:
    """Loads the same model or pipeline as `model_class.from_pretrained(folder)`, bit for bit.

    Args:
        model_class: a model class of diffusers, such as `diffusers.UNet2DConditionModel`, or a
            pipeline class, such as `diffusers.DiffusionPipeline`.
        folder: a folder with config.json and weights, as written by `save_pretrained`, or the name
            of a model in the Hub's cache. For the folder of a pipeline, `subfolder="unet"` selects
            a model.
        dtype: dtype of the parameters, like `torch_dtype` of the library; None means float32.
        quantization_config: for a model, what `dormant.quantize` takes. Configurations of other
            quantizers of the library, and those of pipelines, are passed to the library.
        missing: what to do with missing keys: "init" initializes them, "error" raises an error.
        unexpected: what to do with unexpected keys: "ignore" leaves them out, "error" raises an
            error.
        materialize: False leaves the model lazy.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        mmap: as for `dormant.load`.
        progress: as for `dormant.load`.
        **options: other arguments of the library's `from_pretrained`.

    Returns:
        The model, in evaluation mode; or the pipeline, whose models are in evaluation mode.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: a file is damaged or does not match the model; or an option is not supported for
            a pipeline.
        KeyError: there are missing or unexpected keys that are errors; all of them are listed.
        OSError: there is no such folder, and no cached model of that name; or the system could not
            read a file.

    Example:
        >>> import tempfile, diffusers
        >>> from dormant.integrations.diffusers import from_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     diffusers.AutoencoderTiny(
        ...         encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        ...         num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ...     ).save_pretrained(folder)
        ...     model = from_pretrained(diffusers.AutoencoderTiny, folder)
        >>> model.training
        False
    """
    operation = "from_pretrained"
    check_choice(missing, ("init", "error"), "missing", operation)
    check_choice(unexpected, ("error", "ignore"), "unexpected", operation)
    how = checked_options(operation, memory_budget=memory_budget, mmap=mmap, progress=progress)
    hub = {key: options[key] for key in ("revision", "cache_dir") if key in options}
    local_folder(folder, operation, **hub)
    imported("diffusers")
    if dtype is not None:
        options["torch_dtype"] = dtype
    one_model = issubclass(model_class, torch.nn.Module)
    fused = quantization_config is not None and is_ours(quantization_config)
    if not one_model and (fused or (missing, unexpected) != ("init", "ignore")):
        raise ValueError(
            f"{operation}: {model_class.__name__} is a pipeline of several models, for which "
            "quantization_config, missing and unexpected are not possible. Load the model they are "
            'meant for (subfolder="unet", for example) and hand it to the pipeline.'
        )
    if quantization_config is not None and not fused:
        options["quantization_config"] = quantization_config
    wants_info = options.pop("output_loading_info", False)
    with lazy_init():
        if one_model:
            model, info = model_class.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **options
            )
            check_names(
                operation,
                folder,
                missing=info["missing_keys"] if missing == "error" else (),
                unexpected=info["unexpected_keys"] if unexpected == "error" else (),
                advice="Accept it with missing='init' or unexpected='ignore'.",
            )
        else:
            model, info = model_class.from_pretrained(folder, local_files_only=True, **options), {}
    if fused:
        quantize(model, quantization_config)
    finish(model, how, materialize=materialize)
    return (model, info) if wants_info else model
