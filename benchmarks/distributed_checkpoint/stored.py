"""Folders that four ranks wrote, each with its rows of every parameter of a Llama in bfloat16."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from benchmarks.llama import llama

RANKS = 4


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk.

    Attributes:
        folder: where it is.
        size: as `llama` takes it.
    """

    folder: str
    size: str

    def files(self) -> list[Path]:
        """The files that hold tensors, in order."""
        return sorted(Path(self.folder).glob("*.distcp"))

    def nbytes(self) -> int:
        """Bytes of these files."""
        return sum(path.stat().st_size for path in self.files())


def meta_model(size: str) -> Any:
    """A Llama in bfloat16 on the meta device."""
    with torch.device("meta"):
        return llama(size).to(torch.bfloat16)


def buffers_of(model: Any, size: str) -> None:
    """Gives a model the buffers that no checkpoint has."""
    rotary = type(model.model.rotary_emb)(config=model.config)
    for name, buffer in rotary.named_buffers():
        getattr(model.model.rotary_emb, name).copy_(buffer)


def write(folder: str, size: str) -> None:
    """Writes a folder with torch from four processes."""
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(_write_rank, (folder, size, meeting), nprocs=RANKS)


def _write_rank(rank: int, folder: str, size: str, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}/rendezvous", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    generator = torch.Generator().manual_seed(rank)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in meta_model(size).state_dict().items():
        rows = parameter.shape[0] // RANKS
        part = torch.randn((rows, *parameter.shape[1:]), generator=generator).to(torch.bfloat16)
        state[name] = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
    dcp.save(state, checkpoint_id=folder)
    dist.destroy_process_group()
