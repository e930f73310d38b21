"""transformers' `from_pretrained` with a BitsAndBytesConfig and a DistributedConfig, lazily.

The library divides the model first, and its quantizer then packs what it finds: 5.23 fails while it
loads, or when the model is called. Inside the context, the model is loaded whole and lazily, then
quantized and divided, so that each rank packs its part of what the library packs in one process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dormant._extension import _C
from dormant.quantization.api import quantize

_OPTIONS = ("distributed_config", "tp_plan", "tp_size")


def is_quantized_and_divided(options: dict[str, Any]) -> bool:
    """Whether `from_pretrained` is called in the context with both, and bitsandbytes quantizes."""
    return (
        _C.recording()
        and _is_bitsandbytes(options.get("quantization_config"))
        and any(options.get(name) is not None for name in _OPTIONS)
    )


def load(from_pretrained: Callable[..., Any], kind: Any, options: dict[str, Any]) -> Any:
    """What `from_pretrained` returns: the model, or the model and what was loaded.

    Args:
        from_pretrained: the method, called with keyword arguments.
        kind: the class of the model.
        options: those of the call.

    Raises:
        NotImplementedError: the checkpoint is quantized already.
        ValueError, NotImplementedError: a weight cannot be divided.
    """
    whole = {name: value for name, value in options.items() if name not in _OPTIONS}
    scheme = whole.pop("quantization_config")
    sizes = options.get("distributed_config")
    if sizes is None:
        configurations = importlib.import_module("transformers.distributed.configuration_utils")
        given = {name: options.get(name) for name in ("tp_plan", "tp_size")}
        sizes = configurations.DistributedConfig(**given)
    sizes, _, meshes = kind.prepare_distribute_model(sizes, whole.get("device_map"))
    result = from_pretrained(**whole)
    model = result[0] if isinstance(result, tuple) else result
    if getattr(model, "hf_quantizer", None) is not None:
        raise quantized_already()
    if isinstance(scheme, dict):
        scheme = importlib.import_module("transformers").BitsAndBytesConfig.from_dict(scheme)
    quantize(model, scheme, parameters=())  # the library's quantizer leaves experts as they are
    model = kind.maybe_distribute_model(model, sizes, meshes)
    return (model, *result[1:]) if isinstance(result, tuple) else model


def check_not_quantized(load_config: Any) -> None:
    """Raises NotImplementedError if bitsandbytes quantized a checkpoint that is to be divided."""
    quantizer = getattr(load_config, "hf_quantizer", None)
    scheme = getattr(quantizer, "quantization_config", None)
    divides = getattr(load_config, "device_mesh", None) is not None
    if divides and _C.recording() and _is_bitsandbytes(scheme):
        raise quantized_already()


def quantized_already() -> NotImplementedError:
    """The error for a checkpoint in 4 or 8 bits."""
    return NotImplementedError(
        "from_pretrained: bitsandbytes has quantized the checkpoint, and transformers does not "
        "divide packed weights. Next: inside dormant.lazy_init, build the model from its "
        "configuration without quantization_config; then dormant.quantize(model, scheme), "
        "maybe_distribute_model, and dormant.load(model, checkpoint)."
    )


def _is_bitsandbytes(configuration: Any) -> bool:
    if isinstance(configuration, dict):
        return bool(configuration.get("load_in_4bit") or configuration.get("load_in_8bit"))
    return any(kind.__name__ == "BitsAndBytesConfig" for kind in type(configuration).__mro__)
