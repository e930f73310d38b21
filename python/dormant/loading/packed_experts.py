"""Joins experts that a checkpoint has packed separately into the stacks of current models.

transformers 4 had a linear layer for each expert, and bitsandbytes packed each of them separately.
Packed matrices can be joined if nothing else was done to them, and if blocks that share a scale end
where each matrix ends: the codes are then those of the stack. With double quantization, every
matrix has a different offset, so the stack gets the scales as they were before it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch

from dormant.checkpoint.pretrained import Rules
from dormant.loading.state import State
from dormant.quantization.four_bit import FourBit
from dormant.quantization.four_bit_parameter import FourBitParameter
from dormant.quantization.layers import quantized_weights, tensors_of
from dormant.recording.context import lazy_init
from dormant.tensors.pretrained import is_pretrained


def joined(model: torch.nn.Module, state: State) -> State:
    """`state` with packed stacks in place of the experts that it has packed separately.

    Args:
        model: the model; if it is not a transformers model, `state` is returned.
        state: the tensors of the checkpoint.

    Raises:
        KeyError, ValueError: a part of an expert is missing or damaged.
        ValueError: the stack is not quantized to 4 bits, or the experts cannot be joined.
    """
    library: Any = sys.modules.get("transformers.core_model_loading")
    packed = {
        name
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and f"{name}.absmax" in state
    }
    ours = tensors_of(model) if packed else {}
    if library is None or packed <= ours.keys() or not is_pretrained(model):
        return state
    rules = Rules(model)
    stacks: dict[str, dict[str, list[str]]] = {}
    for name in sorted(packed - ours.keys(), key=library.dot_natural_key):
        target, pattern = rules.apply_to(name, ours)
        if pattern is not None and "*" in pattern and target in ours:
            stacks.setdefault(target, {}).setdefault(pattern, []).append(name)
    weights = {weight.name: weight for weight in quantized_weights(model)}
    values = dict(state)
    origins = dict(state.origins)
    for target, parts in stacks.items():
        weight = weights.get(target)
        kind = None if weight is None else weight.format
        if weight is None or not isinstance(kind, FourBitParameter):
            raise ValueError(
                f"load: the checkpoint has {target} packed in 4 bits, expert by expert, and the "
                "model has it in full precision. Quantize the model first: dormant.quantize(model, "
                '"nf4"), or "fp4" if the checkpoint is fp4.'
            )
        rule = rules.of_pattern[next(iter(parts))]
        rows = [parts.get(pattern, []) for pattern in rule.source_patterns]
        _check_layout(target, rule, rows, weight.source.shape)
        names = [name for expert in zip(*rows, strict=True) for name in expert]
        _, height, width = weight.source.shape
        shape = torch.Size([height // len(rows), width])
        taken: set[str] = set()
        entries = [_entries(state, name, taken) for name in names]
        for name in taken:
            del values[name]
        made = _stack(kind.scheme, entries, shape, weight.source.shape, target)
        values |= {target + suffix: tensor for suffix, tensor in made.items()}
        sources = tuple(each for name in names for each in state.origins_of(name))
        origins |= {target + suffix: sources for suffix in made}
    result = state.like_this(values)
    result.origins = origins
    return result


def _check_layout(target: str, rule: Any, rows: list[list[str]], shape: torch.Size) -> None:
    """Raises ValueError unless the conversion only joins experts one after the other."""
    done = [(type(op).__name__, getattr(op, "dim", None)) for op in rule.operations]
    merge, concatenate = ("MergeModulelist", 0), ("Concatenate", 1)
    if done != [merge] and done != [merge, concatenate]:
        raise ValueError(
            f"load: the checkpoint has {target} packed in 4 bits, expert by expert, and "
            f"transformers converts it with {', '.join(name for name, _ in done)}, which does not "
            "work on packed bytes. Load a checkpoint in full precision instead."
        )
    counts = [len(names) for names in rows]
    if len(shape) != 3 or set(counts) != {shape[0]} or shape[1] % len(rows):
        raise ValueError(
            f"load: {target} stacks {shape[0]} experts, and the checkpoint has {counts} packed "
            f"matrices for {list(rule.source_patterns)}. It belongs to another model, or is "
            "incomplete."
        )


def _entries(state: Mapping[str, Any], name: str, taken: set[str]) -> dict[str, torch.Tensor]:
    """The tensors of one packed matrix, under the names of a layer."""
    suffixes = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
    kinds = tuple(f".quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
    found = {suffix: name + suffix for suffix in (*suffixes, *kinds) if name + suffix in state}
    taken.update(found.values())
    return {f"weight{suffix}": state[full] for suffix, full in found.items()}


def _stack(
    scheme: FourBit,
    entries: list[dict[str, torch.Tensor]],
    shape: torch.Size,
    whole: torch.Size,
    target: str,
) -> dict[str, torch.Tensor]:
    """What bitsandbytes would save for the stack, by suffixes of its name."""
    with lazy_init(), torch.no_grad():
        parts = [scheme.prequantized(each, "weight", shape) for each in entries]
        states = [state for _, state in parts]
        ways = {(state.blocksize, state.dtype) for state in states}
        if len(ways) > 1 or shape.numel() % states[0].blocksize or parts[0][0].itemsize > 1:
            raise ValueError(
                f"load: the packed experts of {target} cannot be combined: matrices of "
                f"{list(shape)} in blocks of {sorted(size for size, _ in ways)}. Blocks have to "
                "end with each expert and be of one size, and packed bytes uint8. Load a "
                "checkpoint in full precision instead."
            )
        dtype = str(states[0].dtype).removeprefix("torch.")
        text = json.dumps(
            {
                "quant_type": scheme.kind,
                "blocksize": states[0].blocksize,
                "dtype": dtype,
                "shape": list(whole),
            }
        )
        return {
            "": torch.cat([packed for packed, _ in parts]),
            ".absmax": torch.cat([_scales(state) for state in states]),
            ".quant_map": states[0].code,
            f".quant_state.bitsandbytes__{scheme.kind}": torch.tensor(
                list(text.encode()), dtype=torch.uint8
            ),
        }


def _scales(state: Any) -> torch.Tensor:
    """The scales in float32, as bitsandbytes computes them before it unpacks."""
    if not state.nested:
        plain: torch.Tensor = state.absmax
        return plain
    nested = state.state2
    count = state.absmax.numel()
    repeated = nested.absmax.repeat_interleave(nested.blocksize)[:count]
    scales: torch.Tensor = nested.code[state.absmax.int()] * repeated + state.offset
    return scales
