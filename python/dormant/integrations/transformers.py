"""Models of transformers from local folders and configurations, read, cast and quantized once.

The library's own code runs on lazy tensors, so conversions of weights and rules for missing keys,
tied weights, dtypes and generation settings are those of the installed version.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Literal

import torch

from dormant.integrations.library import (
    check_names,
    finish,
    imported,
    is_ours,
    local_folder,
)
from dormant.loading.construction import as_the_library
from dormant.materialization.options import Mmap, check_choice, checked_options
from dormant.quantization.api import Scheme, quantize
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback


def from_pretrained(
    model_class: Any,
    folder: str | os.PathLike[str],
    *,
    config: Any = None,
    dtype: torch.dtype | str | None = None,
    quantization_config: Scheme | None = None,
    missing: Literal["init", "error"] = "init",
    unexpected: Literal["error", "ignore"] = "ignore",
    mismatched: Literal["error", "init"] = "error",
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    library_values: bool = False,
    **options: Any,
) -> Any:
    """Loads the same model as `model_class.from_pretrained(folder)`, if the library is correct.

    Each tensor goes from the file to its final memory once, and is cast, converted to the library's
    layout and quantized on the way. Parameters missing from the checkpoint are initialized by
    `_init_weights` with the same random numbers as in the library. Since transformers 5, the
    library leaves parameters uninitialized if no such rule sets them, and overwrites loaded tensors
    if a rule does not check for them. Here, the former keep the values of the constructor, as
    non-persistent buffers do, and the latter keep the loaded values, with a warning.

    Args:
        model_class: a model class or an auto class, such as `transformers.AutoModelForCausalLM`.
        folder: a folder with config.json and weights, as written by `save_pretrained`; or the name
            of a model in the Hub's cache, with `revision=` and `cache_dir=` as in the library.
        config: a configuration to use instead of the folder's, or its path.
        dtype: dtype of the parameters; "auto" and None mean that of the configuration, otherwise
            that of the checkpoint, as in the library.
        quantization_config: what `dormant.quantize` takes ("nf4", "int8", a BitsAndBytesConfig,
            ...), or a configuration of another quantizer of transformers. A folder that is already
            quantized needs none. If `device_map` sends modules to disk, or only some modules to the
            CPU, these keep full precision by the library's own rule, which a BitsAndBytesConfig
            must allow with `llm_int8_enable_fp32_cpu_offload=True`.
        missing: what to do with missing keys: "init" initializes them, "error" raises an error.
        unexpected: what to do with unexpected keys: "ignore" leaves them out, "error" raises an
            error.
        mismatched: what to do with other shapes than the model's: "error" raises an error, "init"
            initializes these parameters.
        materialize: False leaves the model lazy, for `dormant.materialize` and its report, or for
            `dormant.save`.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        mmap: whether tensors that keep the file's dtype may map its bytes; see `dormant.load`.
        progress: as for `dormant.load`.
        library_values: True gives the values of the library, even if they are wrong.
        **options: other arguments of the library's `from_pretrained` (attn_implementation,
            key_mapping, generation_config, subfolder, device_map, ...).

    Returns:
        The model, in evaluation mode; with `output_loading_info=True`, the model and a dictionary,
        as in the library.

    Raises:
        ImportError: transformers, or a library that the quantizer needs, is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: an option has a value that is not supported; a file is damaged; the folder is
            already quantized with another scheme, or has an adapter and is to be quantized; or
            `device_map` has quantized weights on disk, or some of them on the CPU.
        KeyError: there are keys that are errors; all of them are listed.
        RuntimeError: tensors do not have the shapes of the model; raised by the library.
        OSError: there is no such folder, and no cached model of that name; or the system could not
            read a file.

    Example:
        >>> import tempfile, transformers
        >>> from dormant.integrations.transformers import from_pretrained
        >>> config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        ...     model = from_pretrained(transformers.AutoModelForCausalLM, folder)
        >>> type(model).__name__, model.training
        ('GPT2LMHeadModel', False)
    """
    operation = "from_pretrained"
    check_choice(missing, ("init", "error"), "missing", operation)
    check_choice(unexpected, ("error", "ignore"), "unexpected", operation)
    check_choice(mismatched, ("error", "init"), "mismatched", operation)
    how = checked_options(operation, memory_budget=memory_budget, mmap=mmap, progress=progress)
    imported("transformers.modeling_utils")  # before the context, which patches what is imported
    place = local_folder(
        folder,
        operation,
        revision=options.get("revision"),
        cache_dir=options.get("cache_dir"),
    )
    fused = quantization_config is not None and is_ours(quantization_config)
    refusal = _why_not_fused(config, place, options.get("device_map")) if fused else ""
    if quantization_config is not None and (not fused or refusal):
        if not hasattr(quantization_config, "quant_method"):
            raise ValueError(
                f"{operation}: {os.fspath(folder)} {refusal} Got "
                f"quantization_config={quantization_config!r}."
            )
        fused = False
        options["quantization_config"] = quantization_config
    wants_info = options.pop("output_loading_info", False)
    options = {"ignore_mismatched_sizes": mismatched == "init", "local_files_only": True, **options}
    with lazy_init(), as_the_library() if library_values else contextlib.nullcontext():
        model, info = model_class.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **options
        )
    check_names(
        operation,
        folder,
        missing=info["missing_keys"] if missing == "error" else (),
        unexpected=info["unexpected_keys"] if unexpected == "error" else (),
        advice="Rename with key_mapping=, or accept it with missing='init' or unexpected='ignore'.",
    )
    if fused:
        _quantize(model, quantization_config)
    finish(model, how, materialize=materialize)
    return (model, info) if wants_info else model


def from_config(
    model_class: Any,
    config: Any,
    *,
    dtype: torch.dtype | str | None = None,
    quantization_config: Scheme | None = None,
    materialize: bool = True,
    memory_budget: int | str | None = None,
    progress: bool | Callback | None = None,
    **options: Any,
) -> Any:
    """Constructs the same model as `model_class.from_config(config)` with the same seed.

    Args:
        model_class: a model class or an auto class.
        config: a configuration, a folder with config.json, or the name of a model in the Hub's
            cache.
        dtype: dtype of the parameters; "auto" and None mean that of the configuration, otherwise
            torch's default.
        quantization_config: what `dormant.quantize` takes.
        materialize: False leaves the model lazy.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        progress: as for `dormant.materialize`.
        **options: other arguments of the library (attn_implementation, ...).

    Returns:
        The model, in training mode, as from the library.

    Raises:
        ImportError: transformers, or a library that the quantizer needs, is not installed.
        TypeError: an argument has a type that is not supported.
        ValueError: an option has a value that is not supported, or no model class matches the
            configuration.
        OSError: there is no such folder, and no cached model of that name.

    Example:
        >>> import transformers, dormant
        >>> from dormant.integrations.transformers import from_config
        >>> config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20)
        >>> model = from_config(transformers.AutoModelForCausalLM, config, materialize=False)
        >>> dormant.is_lazy(model)
        True
    """
    how = checked_options("from_config", memory_budget=memory_budget, progress=progress)
    library = imported("transformers")
    imported("transformers.modeling_utils")
    if isinstance(config, (str, os.PathLike)):
        hub = {key: options.pop(key) for key in ("revision", "cache_dir") if key in options}
        local_folder(config, "from_config", **hub)
        config = library.AutoConfig.from_pretrained(config, local_files_only=True, **hub)
    build = getattr(model_class, "from_config", None) or model_class._from_config
    if dtype is not None and dtype != "auto":
        options["dtype"] = dtype
    with lazy_init():
        model = build(config, **options)
    if quantization_config is not None:
        _quantize(model, quantization_config)
    finish(model, how, materialize=materialize)
    return model


def _why_not_fused(config: Any, folder: Path, device_map: Any) -> str:
    """Why a folder must be quantized by the library itself; empty if it need not be."""
    if Path(folder, "adapter_config.json").is_file():
        return (  # peft has other layers for a base that is already quantized
            "contains a peft adapter. Load its base with quantization_config= and "
            "materialize=False, then the adapter with dormant.integrations.peft.load_adapter."
        )
    if _is_quantized(config, folder):
        return "is already quantized. Leave out quantization_config."
    places = {str(place) for place in device_map.values()} if isinstance(device_map, dict) else {}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        return (  # bitsandbytes has no weights there that come and go
            f"is sent to {', '.join(sorted(places))} by device_map, where weights can only stay in "
            "full precision. Pass a BitsAndBytesConfig with llm_int8_enable_fp32_cpu_offload=True, "
            "or leave out quantization_config."
        )
    return ""


def _is_quantized(config: Any, folder: Path) -> bool:
    if config is None or isinstance(config, (str, os.PathLike)):
        kind = imported("transformers").PreTrainedConfig
        entries, _ = kind.get_config_dict(config or folder, local_files_only=True)
        return entries.get("quantization_config") is not None
    return getattr(config, "quantization_config", None) is not None


def _quantize(model: torch.nn.Module, scheme: Scheme) -> None:
    before = {
        name: (type(module), module._parameters.get("weight"))
        for name, module in model.named_modules()
    }
    for layer in quantize(model, scheme).layers:
        if layer.name not in before:  # a parameter of another module
            continue
        module: Any = model.get_submodule(layer.name)
        kind, weight = before[layer.name]
        if "bitsandbytes" in type(module).__module__:
            # The library records the class that it replaces, and that the weight is loaded.
            module.source_cls = kind
            if hasattr(weight, "_is_hf_initialized"):
                module.weight._is_hf_initialized = True
