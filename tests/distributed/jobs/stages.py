"""Pipelines: every rank builds the whole model lazily and keeps its own layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import dormant
from jobs.held import keyed_names, lazy_names, local_tensors
from jobs.models import ROWS, SEED, Stages, eager_model, lazy_model

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


def tied(path: str | None) -> dict[str, Any]:
    """The first stage has the embedding, the last one the head that is tied to it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model = tied_stages()
    if path is not None:
        dormant.load(model, path, materialize=False)
    stage = keep_stage(model, rank, world)
    report = dormant.materialize(stage)
    pipeline = ScheduleGPipe(
        PipelineStage(stage, rank, world, torch.device("cpu")), n_microbatches=MICROBATCHES
    )
    tokens = torch.arange(ROWS - 1)
    output = pipeline.step(tokens) if rank == 0 else pipeline.step()
    return {"local": local_tensors(stage), "read": report.read_bytes, "output": output}


def tied_stages() -> nn.Module:
    """`Stages`, its head tied to the embedding."""
    model: Any = Stages()
    model.head = nn.Linear(model.embedding.weight.shape[1], ROWS, bias=False)
    model.head.weight = model.embedding.weight
    return model


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
