"""One of several ranks, of which rank 1 is killed while all load."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

Progress = Callable[[int, int], None]


def run(
    prepare: Callable[[list[str]], Callable[[Progress], tuple[BaseException | None, bool]]],
    *,
    after: float = 0,
) -> None:
    """Runs with the arguments of this program: rank, world, folder and those of the job.

    Args:
        prepare: makes what loads, given the job's arguments; that gets a function to tell its
            progress, and returns what was raised and whether the model is as lazy as before.
        after: the share of the bytes after which rank 1 is killed.
    """
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    load = prepare(sys.argv[4:])

    def on_step(done: int, total: int) -> None:
        if rank == 1 and done >= total * after:
            os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    error, lazy = load(on_step)
    print(f"{time.monotonic() - began:.1f} s: {error}; lazy: {lazy}", flush=True)
    # The others find out by themselves, not because this process ends.
    deadline = time.monotonic() + 20
    (folder / f"{rank}.done").touch()
    while time.monotonic() < deadline and len(list(folder.glob("*.done"))) < world - 1:
        time.sleep(0.05)
    os._exit(0)
