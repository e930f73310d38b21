"""Which layers keep their precision."""

from __future__ import annotations

import difflib
import importlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from dormant._extension import _C
from dormant.tensors.identity import owns_storage
from dormant.tensors.pretrained import is_pretrained
from dormant.text.printable import printable

ADAPTERS = ".*lora.*"
"""The pattern of adapters, which are trained in full precision."""


def is_skipped(name: str, patterns: Iterable[str]) -> str | None:
    """The first of `patterns` that the module name matches; None if none matches.

    The rules are those of transformers' `llm_int8_skip_modules`: a pattern is a regular expression
    that matches from the start of the name up to the end of one of its parts ("layers.1" is not
    "layers.11"), or text with which the name ends ("down_proj").
    """
    for pattern in patterns:
        if re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(pattern):
            return pattern
    return None


def checked(patterns: Iterable[str], what: str) -> list[str]:
    """`patterns` as a list.

    Args:
        patterns: what a user or a configuration gave.
        what: where they come from, for messages.

    Raises:
        TypeError: they are not a list of str.
        ValueError: one is not a regular expression.
    """
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise TypeError(f"quantize: {what} must be a list of module names, got {patterns!r}.")
    listed = list(patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise TypeError(
                f"quantize: {what} must contain names of modules (str), got "
                f"{type(pattern).__name__}: {pattern!r}."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"quantize: {what} has {pattern!r}, which is not a regular expression ({error}). "
                "Names are matched from their start by regular expressions ('.*head', not "
                "'*head'), or by the text with which they end ('head')."
            ) from error
    return listed


def check_all_match(model: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Checks that each of the caller's patterns names a module.

    Raises:
        ValueError: some match nothing; the message proposes similar names.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    unknown = [
        pattern for pattern in patterns if not any(is_skipped(name, (pattern,)) for name in names)
    ]
    if unknown:
        raise ValueError(
            "quantize: skip matches no module of the model: "
            + "; ".join(f"{pattern!r}{proposal(pattern, names)}" for pattern in unknown)
            + ". Nothing was changed. Correct the names or leave them out."
        )


def proposal(pattern: str, names: Sequence[str]) -> str:
    """Which of `names` may have been meant, in parentheses, for a message."""
    # Also the last parts, because an entry may be the end of a name.
    known = dict.fromkeys([*names, *(name.rpartition(".")[2] for name in names)])
    near = difflib.get_close_matches(pattern, known, n=3)
    if near:
        return f" (did you mean {' or '.join(map(repr, map(printable, near)))}?)"
    some = ", ".join(map(printable, names[:5])) + (", ..." if len(names) > 5 else "")
    return f" (there are {some})" if names else ""


def default_patterns(model: torch.nn.Module) -> dict[str, str]:
    """Patterns of what is skipped by default, each with its reason.

    These are names with "lora" in them, weights that are tied to other parameters, and for each
    transformers model what its library skips: the output embedding, tied weights, the module of the
    last parameter, and what the model keeps in float32. The role of other modules is not known.
    """
    patterns = {ADAPTERS: 'its name contains "lora"'}
    patterns |= dict.fromkeys(_tied_modules(model), "its weight is tied")
    base = importlib.import_module("transformers.quantizers.base") if _pretrained(model) else None
    for prefix, part in _pretrained(model):
        head = part.get_output_embeddings()
        heads = {name for name, module in part.named_modules() if module is head}
        tied = {*part.all_tied_weights_keys, *part.all_tied_weights_keys.values()}
        assert base is not None
        for key in sorted(base.get_keys_to_not_convert(part)):
            reason = (
                "it is the output embedding"
                if key in heads
                else "its weight is tied"
                if key in tied or f"{key}.weight" in tied
                else "transformers skips it, the module of the last parameter"
            )
            # Without a prefix, this is the library's own text, which a saved configuration repeats.
            patterns.setdefault(_exactly(f"{prefix}.{key}") if prefix else key, reason)
    return patterns | _kept_in_float32(model)


def kept_by_configuration(model: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Patterns if a configuration object has its own list, which replaces the defaults."""
    configured = checked(names, "the configuration's list of modules to skip")
    return _kept_in_float32(model) | dict.fromkeys(configured, "the configuration skips it")


def tied_names(model: torch.nn.Module) -> dict[int, list[str]]:
    """Names of parameters that share one storage with others, by the storage.

    This is more than tensors of one `identity`: a transposed tie, or rows of a fused weight, are
    written through each other's storage. A packed copy of one would no longer show these writes.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and owns_storage(parameter) and parameter.numel():
                names[_C.storage_id(parameter)].append(f"{prefix}.{name}" if prefix else name)
    return {key: value for key, value in names.items() if len(value) > 1}


def _pretrained(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """The outermost transformers models in `model`, by name."""
    return list(_outermost(model, ""))


def _outermost(module: torch.nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    if is_pretrained(module):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _outermost(child, f"{name}.{key}" if name else key)


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


def _kept_in_float32(model: torch.nn.Module) -> dict[str, str]:
    keys = {key for _, part in _pretrained(model) for key in part._keep_in_fp32_modules or ()}
    return dict.fromkeys(sorted(keys), "transformers keeps it in float32")
