"""DDP, and FSDP1, which flattens each unit before it keeps its part."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import dormant
from jobs.held import keyed_names, lazy_names, local_tensors, train_step
from jobs.models import ROWS, Block, eager_model, lazy_model

TOKENS = torch.arange(ROWS)


def replicate(materialize_first: bool, init_sync: bool) -> dict[str, Any]:
    """Wraps a lazy model in DDP, before or after bringing it to life."""
    model = lazy_model("TiedModel")
    if materialize_first:
        dormant.materialize(model)
    wrapped = DistributedDataParallel(model, init_sync=init_sync)
    lazy = lazy_names(model)
    dormant.materialize(wrapped)
    eager = DistributedDataParallel(eager_model("TiedModel"))
    return {
        "lazy before": lazy,
        "lazy after": lazy_names(wrapped),
        "keyed after": keyed_names(wrapped),
        "local": local_tensors(model),
        "step": train_step(wrapped, TOKENS),
        "eager step": train_step(eager, TOKENS),
    }


def _flatten(model: nn.Module, use_orig_params: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        auto_wrap_policy=ModuleWrapPolicy([Block]),
        use_orig_params=use_orig_params,
    )


def flatten(use_orig_params: bool) -> dict[str, Any]:
    """Wraps a lazy model in FSDP1, unit by unit."""
    model = _flatten(lazy_model("TiedModel"), use_orig_params)
    lazy = lazy_names(model)
    dormant.materialize(model)
    eager = _flatten(eager_model("TiedModel"), use_orig_params)
    parts = local_tensors(model), local_tensors(eager)
    whole = functools.partial(
        FullyShardedDataParallel.state_dict_type, state_dict_type=StateDictType.FULL_STATE_DICT
    )
    with whole(model):
        gathered = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {
        "lazy before": lazy,
        "lazy after": lazy_names(model),
        "keyed after": keyed_names(model),
        "local": parts[0],
        "eager local": parts[1],
        "gathered": gathered,
        "step": train_step(model, TOKENS),
        "eager step": train_step(eager, TOKENS),
    }
