"""Models and pipelines of diffusers from local folders, read and cast once."""

from __future__ import annotations

import os
from typing import Any

import torch

from dormant.integrations.library import check_folder, finish, imported
from dormant.materialization.options import Mmap, checked_options
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback


def from_pretrained(
    model_class: Any,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    **options: Any,
) -> Any:
    """The model or pipeline that `model_class.from_pretrained(folder)` gives, bit for bit.

    Args:
        model_class: a model class of diffusers, such as `diffusers.UNet2DConditionModel`, or a
            pipeline class, such as `diffusers.DiffusionPipeline`.
        folder: a folder with config.json and weights, as `save_pretrained` writes; one of a
            pipeline takes `subfolder="unet"`, too.
        dtype: of the parameters, as `torch_dtype` of the library; None means float32.
        materialize: False leaves it lazy.
        memory_budget: bytes that this may take besides the final tensors, a number or text like
            "2GiB"; None sets no bound.
        mmap: as for `dormant.load`.
        progress: as for `dormant.load`.
        **options: what the library's `from_pretrained` takes besides.

    Returns:
        The model, in evaluation mode; or the pipeline, whose models are.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: an argument is of a type that cannot be used.
        ValueError: a file is damaged or does not fit the model.
        OSError: there is no such folder, or the system could not read a file.

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
    how = checked_options(
        "from_pretrained", memory_budget=memory_budget, mmap=mmap, progress=progress
    )
    check_folder(folder, "from_pretrained")
    imported("diffusers")
    if dtype is not None:
        options["torch_dtype"] = dtype
    with lazy_init():
        model = model_class.from_pretrained(folder, local_files_only=True, **options)
    finish(model, how, materialize=materialize)
    return model
