"""Rules of tensor parallelism for models of transformers, from the plans of the library."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from dormant.cli.pretrained import model_class
from dormant.integrations.library import imported
from dormant.recording.context import lazy_init
from dormant.tensor_parallel.rules import REPLICATED, Reshape, Rule, Rules, Sharded
from dormant.tensors.names import grouped
from dormant.text.printable import printable
from dormant_command.outcome import UsageError

# What the styles of transformers/distributed/tensor_parallel.py do with parameters: the dimension
# that they divide, counted from the end, and whether it packs two matrices, each of which is
# divided. Biases have one dimension, which only some styles divide.
_DIVIDING = {
    "colwise": (-2, False),
    "colwise_gather_output": (-2, False),
    "colwise_rep": (-2, False),
    "rowwise": (-1, False),
    "rowwise_split_input": (-1, False),
    "rowwise_rep": (-1, False),
    "embedding_rowwise": (-2, False),
    "embedding_colwise": (-1, False),
    "packed_colwise": (-2, True),
    "packed_rowwise": (-1, True),
}
# These change what modules compute, not their parameters.
_REPLICATING = {
    "all_reduce",
    "local_params",
    "mla_kv_a_proj",
    "moe_identity_expert",
    "moe_tp_experts",
    "replicate",
    "replicated_with_grad_allreduce",
    "sequence_parallel",
}


def library_rules(config: Any, names: Iterable[str], count: int) -> Rules:
    """The rules by which transformers divides the parameters of a model among `count` ranks.

    Args:
        config: the configuration of the model.
        names: the names for which there must be rules.
        count: the number of ranks; 1 for merging.

    Raises:
        UsageError: the model has no plan, or not all of these names; or its plan cannot divide it
            among so many ranks.
        NotImplementedError: the installed transformers has no such class, or its plan has a style
            that is not known here.
    """
    kind = model_class(config)
    imported("transformers.modeling_utils")  # before the context, which patches imported modules
    with lazy_init():
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    plan = getattr(model, "tp_plan", None)
    if not plan:
        raise UsageError(
            f"transformers has no plan for the tensor parallelism of {type(model).__name__}, so "
            "its weights cannot be divided."
        )
    tensors = model.state_dict(keep_vars=True)
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise UsageError(
            f"{type(model).__name__} has no weights of these names, so its plan does not say how "
            f"to divide them: {', '.join(map(printable, grouped(unknown)[:5]))}. Rename them with "
            "--rename, or load the checkpoint into the model and save it again."
        )
    rules = {name: _rule(name, tensor, plan) for name, tensor in tensors.items()}
    uneven = [name for name, tensor in tensors.items() if not _is_even(tensor, name, plan, count)]
    if uneven:
        raise UsageError(
            f"these weights cannot be divided evenly among {count} ranks: "
            f"{', '.join(grouped(uneven)[:5])}."
        )
    # A pattern also matches what ends with it, so longer names come first.
    return {glob.escape(name): rules[name] for name in sorted(rules, key=len, reverse=True)}


def _style(name: str, plan: Mapping[str, str]) -> str:
    """The style for a parameter, or for the module that owns it."""
    generic = re.sub(r"\.\d+(\.|$)", r".*\1", name)  # as the library does
    return plan.get(generic) or plan.get(generic.rpartition(".")[0]) or "replicate"


def _place(tensor: torch.Tensor, name: str, plan: Mapping[str, str]) -> tuple[int, bool] | None:
    """The dimension along which a parameter is divided, and whether it packs two matrices."""
    style = _style(name, plan)
    if style in _REPLICATING or tensor.dim() == 0:
        return None
    if style not in _DIVIDING:
        raise NotImplementedError(
            f"transformers divides {name} in the style {style!r}, which is not supported."
        )
    dim, packed = _DIVIDING[style]
    if tensor.dim() == 1:
        return (0, False) if dim == -2 else None
    return tensor.dim() + dim, packed


def _rule(name: str, tensor: torch.Tensor, plan: Mapping[str, str]) -> Rule:
    place = _place(tensor, name, plan)
    if place is None:
        return REPLICATED
    dim, packed = place
    return _packed(dim) if packed else Sharded(dim)


def _is_even(tensor: torch.Tensor, name: str, plan: Mapping[str, str], count: int) -> bool:
    place = _place(tensor, name, plan)
    return place is None or tensor.size(place[0]) % (count * (2 if place[1] else 1)) == 0


def _packed(dim: int) -> Reshape:
    """Divides each of two matrices that are stacked along `dim`, as gate and up projections."""

    def reshape(parts: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
        halves = [torch.cat([part.chunk(2, dim)[half] for part in parts], dim) for half in (0, 1)]
        pieces = [half.chunk(count, dim) for half in halves]
        return [torch.cat(pair, dim) for pair in zip(*pieces, strict=True)]

    return reshape
