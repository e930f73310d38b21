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

from benchmarks.ranks.ways import WAYS
from benchmarks.sample import sample


def digest(model: nn.Module) -> str:
    """Of this rank's parts, and of the statistics of packed weights."""
    total = hashlib.sha256()
    tensors: list[Any] = [parameter.to_local() for parameter in model.parameters()]  # type: ignore[operator]
    for module in model.modules():
        state = vars(module).get("quant_state")
        if state is not None:
            tensors += [state.absmax, state.state2.absmax, state.offset.view(1)]
    for tensor in tensors:
        total.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rank, world = job["rank"], job["world"]
    dist.init_process_group(
        "gloo", init_method=f"file://{job['rendezvous']}", rank=rank, world_size=world
    )
    way, path = WAYS[job["way"]], Path(job["path"])
    how = {"packed": job["packed"], "layers": job["layers"], "size": job["size"]}
    small = Path(job["small"])
    way(small, packed=job["packed"], layers=1, size=256)  # imports, and connections of the group
    dist.barrier()
    found: dict[str, Any] = {}
    made: list[nn.Module] = []
    found.update(sample(lambda: made.append(way(path, **how))))
    found["digest"] = digest(made[0])
    found["part"] = sum(p.to_local().nbytes for p in made[0].parameters())  # type: ignore[operator]
    print(json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's teardown may abort a process that has done its work


if __name__ == "__main__":
    main()
