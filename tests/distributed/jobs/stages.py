"""Pipelines: every rank builds the whole model lazily and keeps its own layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import dormant
from jobs.held import keyed_names, lazy_names, local_tensors
from jobs.models import ROWS, eager_model, lazy_model

MICROBATCHES = 2


def keep_stage(model: nn.Module, rank: int, world: int) -> nn.Module:
    """Takes from the model what the other ranks hold; names stay as in the whole model."""
    blocks = model.get_submodule("blocks")
    count = len(list(blocks.children()))
    for i in range(count):
        if i * world // count != rank:
            setattr(blocks, str(i), nn.Identity())
    if rank != 0:
        model.embedding = nn.Identity()
    if rank != world - 1:
        model.head = nn.Identity()
    return model


def run() -> dict[str, Any]:
    """Materializes this rank's stage and runs the pipeline; the last rank has the output."""
    rank, world = dist.get_rank(), dist.get_world_size()
    stage = keep_stage(lazy_model("Stages"), rank, world)
    lazy = lazy_names(stage)
    report = dormant.materialize(stage)
    pipeline = ScheduleGPipe(
        PipelineStage(stage, rank, world, torch.device("cpu")), n_microbatches=MICROBATCHES
    )
    tokens = torch.arange(ROWS - 1)
    output = pipeline.step(tokens) if rank == 0 else pipeline.step()
    return {
        "lazy before": lazy,
        "lazy after": lazy_names(stage),
        "keyed after": keyed_names(stage),
        "local": local_tensors(stage),
        "bytes": report.nbytes,
        "output": output,
    }


def split_whole() -> dict[str, Any]:
    """Materializes one layer's module inside the whole model; the rest is left as it was."""
    rank = dist.get_rank()
    model = lazy_model("Stages")
    mine = model.get_submodule("blocks").get_submodule(str(rank))
    dormant.materialize(mine)
    return {"lazy": lazy_names(model), "local": local_tensors(mine)}


def eager_output() -> torch.Tensor:
    """What the pipeline computes, on one process: the model on each microbatch."""
    torch.set_num_threads(1)  # as the ranks
    model = eager_model("Stages")
    tokens = torch.arange(ROWS - 1)
    return torch.cat([model(part) for part in tokens.chunk(MICROBATCHES)]).detach()
