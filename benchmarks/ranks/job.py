"""One rank: `python -m benchmarks.ranks.job ARGUMENTS`, JSON in and out."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from benchmarks.ranks.ways import REPLICAS, WAYS
from benchmarks.sample import sample


def digest(model: nn.Module) -> str:
    """Of this rank's parts, and of the statistics of packed weights."""
    total = hashlib.sha256()
    tensors: list[Any] = parts(model)
    for module in model.modules():
        state = vars(module).get("quant_state")
        if state is not None:
            tensors += [state.absmax, state.state2.absmax, state.offset.view(1)]
    for tensor in tensors:
        total.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def parts(model: nn.Module) -> list[torch.Tensor]:
    """What this rank has of each parameter."""
    return [p.to_local() if isinstance(p, DTensor) else p.data for p in model.parameters()]


def bytes_read() -> int:
    """What read calls gave this process so far; 0 where the system does not count."""
    counts = Path("/proc/self/io")
    lines = counts.read_text().splitlines() if counts.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar")), 0)


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rank, world = job["rank"], job["world"]
    dist.init_process_group(
        "gloo", init_method=f"file://{job['rendezvous']}", rank=rank, world_size=world
    )
    way, path = {**WAYS, **REPLICAS}[job["way"]], Path(job["path"])
    how = {"packed": job["packed"], "layers": job["layers"], "size": job["size"]}
    small = Path(job["small"])
    way(small, packed=job["packed"], layers=1, size=256)  # imports, and connections of the group
    dist.barrier()
    found: dict[str, Any] = {}
    made: list[nn.Module] = []
    before = bytes_read()
    found.update(sample(lambda: made.append(way(path, **how))))
    found["read"] = bytes_read() - before
    found["digest"] = digest(made[0])
    found["part"] = sum(part.nbytes for part in parts(made[0]))
    print(json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's teardown may abort a process that has done its work


if __name__ == "__main__":
    main()
