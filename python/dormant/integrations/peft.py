"""Adapters of peft on lazy models, including quantized ones."""

from __future__ import annotations

import os
from typing import Any

import torch

from dormant.integrations.library import finish, imported, local_folder
from dormant.materialization.options import Mmap, checked_options
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback


def get_peft_model(
    model: torch.nn.Module,
    config: Any,
    *,
    adapter_name: str = "default",
    materialize: bool = True,
    memory_budget: int | str | None = None,
    progress: bool | Callback | None = None,
    **options: Any,
) -> Any:
    """Adds a new adapter to a model, as `peft.get_peft_model` does with the same seed.

    Args:
        model: the base model, lazy or real. If you quantize it first (`dormant.quantize`, or
            `quantization_config=` of the transformers integration), the adapter gets peft's layers
            for quantized models.
        config: a configuration of peft, such as `peft.LoraConfig`.
        adapter_name: the adapter's name.
        materialize: False leaves base and adapter lazy.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        progress: as for `dormant.materialize`.
        **options: other arguments of `peft.get_peft_model` (mixed, autocast_adapter_dtype, ...).

    Returns:
        The PeftModel.

    Raises:
        ImportError: peft is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: an option has a value that is not supported, or the adapter does not match the
            model.

    Example:
        >>> import peft, torch, dormant
        >>> from dormant.integrations.peft import get_peft_model
        >>> with dormant.lazy_init():
        ...     base = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> model = get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]))
        >>> model.base_model.model[0].lora_A["default"].weight.shape
        torch.Size([2, 8])
    """
    how = checked_options("get_peft_model", memory_budget=memory_budget, progress=progress)
    library = imported("peft")
    with lazy_init():
        adapted = library.get_peft_model(model, config, adapter_name=adapter_name, **options)
    finish(adapted, how, materialize=materialize)
    return adapted


def load_adapter(
    model: torch.nn.Module,
    folder: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    **options: Any,
) -> Any:
    """Adds a saved adapter to a model, as `peft.PeftModel.from_pretrained` does.

    Args:
        model: the base, lazy or real; or a PeftModel, which gets one more adapter.
        folder: a folder written by `save_pretrained` of a PeftModel, or the name of an adapter in
            the Hub's cache.
        adapter_name: the adapter's name.
        materialize: False leaves base and adapter lazy.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        mmap: as for `dormant.load`.
        progress: as for `dormant.load`.
        **options: other arguments of peft (is_trainable, ...).

    Returns:
        The PeftModel; `model` itself if it already is one.

    Raises:
        ImportError: peft is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: an option has a value that is not supported, or the adapter does not match the
            model.
        OSError: there is no such folder, and no cached adapter of that name; or the system could
            not read a file.

    Example:
        >>> import tempfile, peft, torch, dormant
        >>> from dormant.integrations.peft import get_peft_model, load_adapter
        >>> config = peft.LoraConfig(r=2, target_modules=["0"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
        ...     saved.save_pretrained(folder)
        ...     with dormant.lazy_init():
        ...         base = torch.nn.Sequential(torch.nn.Linear(8, 8))
        ...     model = load_adapter(base, folder)
        >>> list(model.peft_config)
        ['default']
    """
    how = checked_options("load_adapter", memory_budget=memory_budget, mmap=mmap, progress=progress)
    hub = {key: options.pop(key) for key in ("revision", "cache_dir") if key in options}
    place = local_folder(folder, "load_adapter", **hub)
    library = imported("peft")
    adapted: Any = model
    with lazy_init():
        if isinstance(model, library.PeftModel):
            adapted.load_adapter(place, adapter_name, **options)
        else:
            adapted = library.PeftModel.from_pretrained(
                model, place, adapter_name=adapter_name, **options
            )
    finish(adapted, how, materialize=materialize)
    return adapted
