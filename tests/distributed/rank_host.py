"""A process that imports everything once and forks the ranks of one job after another.

Importing torch and its distributed packages takes seconds; forking takes milliseconds. Requests are
lines of JSON on standard input: the folder of the job, the number of ranks, the function
("module:name" under jobs/), its arguments, and how long it may take. Each is answered by a line
with the exit code of every rank, -n for signal n.

A rank writes its result, waits until every other rank has ended or written its own, and leaves by
`os._exit`: gloo's teardown, which can abort a process that did all its work, never runs, and any
abort that does happen is one of the job. No rank outlives its time limit.
"""

from __future__ import annotations

import datetime
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
from torch import nn

import dormant

GRACE = 2.0  # seconds that ranks get to end by themselves after one of them failed


def _exists(folder: Path, rank: int) -> bool:
    return (folder / f"rank{rank}.result").exists() or (folder / f"rank{rank}.failed").exists()


def _run_rank(request: dict[str, Any], rank: int) -> NoReturn:
    folder, world = Path(request["folder"]), request["world"]
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Both the stack of a rank that hangs, and its end.
    faulthandler.dump_traceback_later(request["seconds"], exit=True, file=2)
    faulthandler.enable(file=2)
    # A forked process makes ATen's thread pool anew when somebody sets a number of threads. The
    # threads of the first backward pass all do: they would race for it ("Invalid thread pool!").
    torch.set_num_threads(torch.get_num_threads())
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=request["seconds"]),
        )
        module, name = request["job"].split(":")
        result = getattr(importlib.import_module(f"jobs.{module}"), name)(**request["arguments"])
        torch.save(result, folder / f"rank{rank}.partial")
        (folder / f"rank{rank}.partial").rename(folder / f"rank{rank}.result")
        while not all(_exists(folder, other) for other in range(world)):
            time.sleep(0.005)
    except BaseException:  # whatever it was, the test shows it
        traceback.print_exc()
        (folder / f"rank{rank}.failed").touch()
        os._exit(1)
    os._exit(0)


def _run_job(request: dict[str, Any]) -> list[int]:
    importlib.import_module(f"jobs.{request['job'].partition(':')[0]}")  # once, for all ranks
    running: dict[int, int] = {}
    for rank in range(request["world"]):
        process = os.fork()
        if process == 0:
            _run_rank(request, rank)
        running[process] = rank
    codes = [0] * request["world"]
    deadline = time.monotonic() + request["seconds"] + GRACE
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            code = codes[running.pop(process)] = os.waitstatus_to_exitcode(status)
            if code:
                deadline = min(deadline, time.monotonic() + GRACE)
            continue
        if time.monotonic() > deadline:
            for other in running:
                os.kill(other, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)
    return codes


def _warm_up() -> None:
    """Runs what imports Python code at first use: Meta kernels do."""
    with dormant.lazy_init():
        model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    dormant.materialize(model)


def main() -> None:
    torch.set_num_threads(1)
    # A host whose own name does not resolve has the loopback interface all the same.
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    _warm_up()
    for line in sys.stdin:
        print(json.dumps(_run_job(json.loads(line))), flush=True)
    os._exit(0)  # nothing to tear down, and torch takes its time


if __name__ == "__main__":
    main()
