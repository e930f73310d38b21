"""The attributes by which transformers recognizes a model that bitsandbytes quantized."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Collection
from typing import Any

import torch

from dormant.quantization.four_bit import FourBit
from dormant.quantization.int8 import Int8
from dormant.tensors.pretrained import is_pretrained


def configuration_of(scheme: FourBit | Int8, skipped: list[str] | None) -> Any:
    """A BitsAndBytesConfig that describes `scheme`.

    Args:
        scheme: the scheme.
        skipped: patterns of the layers that keep their precision; None means transformers' own
            choice.
    """
    kind = importlib.import_module("transformers").BitsAndBytesConfig
    if isinstance(scheme, FourBit):
        return kind(
            load_in_4bit=True,
            llm_int8_skip_modules=skipped,
            bnb_4bit_quant_type=scheme.kind,
            bnb_4bit_use_double_quant=scheme.nested,
            bnb_4bit_compute_dtype=scheme.compute_dtype,
            bnb_4bit_quant_storage=scheme.storage_dtype,
        )
    return kind(
        load_in_8bit=True,
        llm_int8_skip_modules=skipped,
        llm_int8_threshold=float(scheme.threshold),
    )


def mark(model: Any, configuration: Any) -> None:
    """Marks a transformers model as `from_pretrained` does with a quantization_config.

    The model then saves a configuration from which it can be loaded again, and peft recognizes the
    layers. The model gets a copy of its configuration, which other models may use, too.
    """
    take_own_configuration(model)
    auto = importlib.import_module("transformers.quantizers.auto")
    quantizer = auto.AutoHfQuantizer.from_config(configuration, pre_quantized=False)
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = configuration.quant_method
    model.config.quantization_config = configuration
    if configuration.load_in_4bit:
        model.is_loaded_in_4bit = True
    else:
        model.is_loaded_in_8bit = True
    for module in model.modules():
        if is_pretrained(module):
            module.config._is_quantized = True


def save_under_own_names(model: torch.nn.Module, modules: Collection[torch.nn.Module]) -> None:
    """Makes the transformers models that contain `modules` save packed parameters as they are.

    The library would convert them to an earlier layout with one tensor for each expert. Packed
    bytes cannot be cut in this way, and the attempt fails. The library saves a model according to
    the attribute that is set here (`revert_weight_conversion` in
    transformers/core_model_loading.py).
    """
    part: Any
    for part in model.modules():
        if is_pretrained(part) and not set(modules).isdisjoint(part.modules()):
            part._weight_conversions = []


def take_own_configuration(model: Any) -> None:
    """Copies the configuration, and its nested ones, for all modules that hold one of them."""
    kind = importlib.import_module("transformers").PreTrainedConfig
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, kind) and id(value) in copies:
                vars(module)[name] = copies[id(value)]


def from_configuration(config: Any) -> FourBit | Int8:
    """The scheme that a transformers BitsAndBytesConfig stands for.

    Raises:
        ValueError: it asks for neither 4 nor 8 bits, or for 16-bit weights.
    """
    if config.load_in_4bit:
        return FourBit(
            kind=config.bnb_4bit_quant_type,
            nested=config.bnb_4bit_use_double_quant,
            compute_dtype=config.bnb_4bit_compute_dtype,
            storage_dtype=config.bnb_4bit_quant_storage,
        )
    if config.load_in_8bit and not config.llm_int8_has_fp16_weight:
        return Int8(threshold=config.llm_int8_threshold)
    raise ValueError(
        "quantize: the BitsAndBytesConfig quantizes nothing: set load_in_4bit=True, or "
        "load_in_8bit=True without llm_int8_has_fp16_weight (which keeps 16-bit weights)."
    )
