"""Which layers keep their precision."""

from __future__ import annotations

import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from dormant._extension import _C
from dormant.tensors.inventory import owns_storage

ADAPTERS = ".*lora.*"
"""The pattern of adapters, which are trained in full precision."""


def is_skipped(name: str, patterns: Iterable[str]) -> str | None:
    """The first of `patterns` that the module name matches, None where none does.

    The rules are those of transformers' `llm_int8_skip_modules`: a pattern is a regular expression
    that matches from the start of the name up to the end of one of its parts ("layers.1" is not
    "layers.11"), or text with which the name ends ("down_proj").
    """
    for pattern in patterns:
        if re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(pattern):
            return pattern
    return None


def default_patterns(model: torch.nn.Module) -> dict[str, str]:
    """Patterns of what is skipped unless the caller says otherwise, each with its reason.

    Names with "lora" in them; weights that are tied to other parameters; the output head. Of a
    transformers model its own rules decide what the head is: the output embedding and the last
    parameter's module, besides what the model keeps in float32. Of any other, the module of the
    last parameter that is no adapter's, and the output embeddings of the models in it.
    """
    patterns = {ADAPTERS: 'its name contains "lora"'}
    patterns |= dict.fromkeys(_tied_modules(model), "its weight is tied")
    if is_pretrained(model):
        base = importlib.import_module("transformers.quantizers.base")
        for key in sorted(base.get_keys_to_not_convert(model)):
            patterns.setdefault(key, "transformers keeps it: output head, last module or tied")
    else:
        head = _last_module(model)
        if head:
            patterns.setdefault(_exactly(head), "it is the output head (the last module)")
        for name in _output_embeddings(model):
            patterns.setdefault(_exactly(name), "it is the output embedding")
    for key in _kept_in_float32(model):
        patterns.setdefault(key, "transformers keeps it in float32")
    return patterns


def kept_by_configuration(model: torch.nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Patterns where a configuration object has its own list, which replaces the defaults."""
    patterns = dict.fromkeys(names, "the configuration skips it")
    for key in _kept_in_float32(model):
        patterns.setdefault(key, "transformers keeps it in float32")
    return patterns


def is_pretrained(model: torch.nn.Module) -> bool:
    """Whether `model` is a transformers model."""
    modeling_utils = sys.modules.get("transformers.modeling_utils")
    return modeling_utils is not None and isinstance(model, modeling_utils.PreTrainedModel)


def tied_names(model: torch.nn.Module) -> dict[int, list[str]]:
    """Names of parameters that share one storage with others, by the storage."""
    names: dict[int, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and owns_storage(parameter) and parameter.numel():
                names[_C.storage_id(parameter)].append(f"{prefix}.{name}" if prefix else name)
    return {key: value for key, value in names.items() if len(value) > 1}


def _tied_modules(model: torch.nn.Module) -> list[str]:
    return sorted(
        {
            _exactly(name.removesuffix(".weight"))
            for names in tied_names(model).values()
            for name in names
            if name.endswith(".weight")
        }
    )


def _exactly(name: str) -> str:
    return re.escape(name) + "$"


def _last_module(model: torch.nn.Module) -> str:
    names = [name for name, _ in model.named_parameters() if "lora" not in name]
    return names[-1].rpartition(".")[0] if names else ""


def _output_embeddings(model: torch.nn.Module) -> list[str]:
    found: list[str] = []
    by_id = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        if is_pretrained(module):
            head = module.get_output_embeddings()  # type: ignore[operator]
            if head is not None and by_id.get(id(head)):
                found.append(by_id[id(head)])
    return found


def _kept_in_float32(model: torch.nn.Module) -> list[str]:
    keys = getattr(model, "_keep_in_fp32_modules", None) if is_pretrained(model) else None
    return sorted(keys or ())
