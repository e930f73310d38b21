"""Loads that fail on one rank: what the others raise, and what all of them have afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dormant
from dormant import _C
from dormant.ranks.together import Together
from jobs import killed
from jobs.models import SEED, Layered


def lazy_model(way: str, *, seed: int = SEED) -> Any:
    """`Layered`, divided among the ranks: "float", "nf4", or "parallel", which is in nf4, too."""
    torch.manual_seed(seed)
    with dormant.lazy_init():
        model: Any = Layered()
    if way == "parallel":
        dormant.quantize(model, dormant.FourBit(block_size=32), skip=["head"])
        plan = {
            "layers.0": ColwiseParallel(output_layouts=Replicate()),
            "layers.1": RowwiseParallel(input_layouts=Replicate()),
        }
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        return parallelize_module(model, mesh, plan, src_data_rank=None)
    if way == "nf4":
        dormant.quantize(model, "nf4", skip=["head"])
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def lazy_state(model: nn.Module) -> list[bool]:
    """Whether each parameter, in order, has no memory."""
    return [dormant.is_lazy(parameter) for parameter in model.parameters()]


def attempt(model: nn.Module, path: str | None) -> BaseException | None:
    """What `load`, or without a path `materialize`, raises."""
    try:
        if path is None:
            dormant.materialize(model)
        else:
            dormant.load(model, path, mmap="never")  # what is mapped takes no memory
    except BaseException as error:
        return error
    return None


def one_fails(way: str, path: str, bad_path: str | None) -> dict[str, Any]:
    """Rank 1 gets another path; all try once more with the right one."""
    model = lazy_model(way)
    mine = bad_path if dist.get_rank() == 1 else path
    began = time.monotonic()
    error = attempt(model, mine)
    return {
        "error": (type(error).__name__, str(error)),
        "errno": getattr(error, "errno", None),
        "seconds": time.monotonic() - began,
        "lazy": lazy_state(model),
        "again": repr(attempt(model, path)),
        "output": model(torch.ones(2, 64)).detach(),
    }


def every_step_fails(way: str, path: str | None, kind: str, ranks: list[int]) -> dict[str, Any]:
    """The n-th allocation or read fails on some ranks, for every n that there is."""
    rank = dist.get_rank()
    model = lazy_model(way)
    _C.set_faults(f"{kind}:0")
    attempt(model, path)
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, _C.set_faults("")[kind])
    most = max(counts)
    numbers = sorted({1 + i * (most - 1) // 19 for i in range(20)})
    kept, raised = [], []
    for n in numbers:
        model = lazy_model(way)
        if rank in ranks:
            _C.set_faults(f"{kind}:{n}")
        error = attempt(model, path)
        _C.set_faults("")
        raised.append(type(error).__name__)
        kept.append(lazy_state(model))
        error = attempt(model, path)
        if error is not None:
            raise error
        outputs = model(torch.ones(2, 64)).detach()
        if n == numbers[0]:
            first = outputs
        assert torch.equal(first, outputs), n
    return {"raised": raised, "lazy": kept, "output": outputs}


def messages() -> dict[str, Any]:
    """What ranks hear that say nothing, little, or more than fits into a row; and a failure."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = lazy_model("float")
    kinds: list[Any] = [None, "short", "x" * 5000, ["y" * 3000] * 2]
    found: dict[str, Any] = {"heard": [], "expected": []}
    with Together("load", [model]) as together:
        for shift in range(4):
            found["heard"].append(together.exchange(kinds[(rank + shift) % 4]))
            found["expected"].append({r: kinds[(r + shift) % 4] for r in range(world)})
        together.conclude()
    with contextlib.suppress(RuntimeError), Together("load", [model]) as together:
        _C.set_faults("allocate:1" if rank == 1 else "")
        together.exchange("z" * 5000)
        found["heard"].append("the failure of rank 1 is not noticed")
    _C.set_faults("")
    return found


def other_seeds(path: str | None) -> list[str]:
    """Rank 1 has drawn something before."""
    found = []
    # Of parallel layers those compare what they have that are divided.
    for way in ("float", "nf4") if path is not None else ("float", "nf4", "parallel"):
        model = lazy_model(way, seed=SEED + dist.get_rank() // 1 % 2)
        error = attempt(model, path)
        found.append(f"{type(error).__name__}: {error}")
        assert all(lazy_state(model))
    return found


def alone(path: str) -> torch.Tensor:
    """Each rank has a mesh of its own, and only one of them loads."""
    mesh = DeviceMesh("cpu", [[0], [1]], mesh_dim_names=("others", "own"))["own"]
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model: Any = Layered()
    dormant.quantize(model, "nf4", skip=["head"])
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if dist.get_rank() == 0:
        return torch.zeros(0)
    dormant.load(model, path)
    output: torch.Tensor = model(torch.ones(2, 64)).detach()
    return output


def other_weights(path: str) -> str:
    """Rank 1 has quantized a layer less."""
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model: Any = Layered()
    skip = ["head", "layers.1"] if dist.get_rank() == 1 else ["head"]
    dormant.quantize(model, "nf4", skip=skip)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    error = attempt(model, path)
    assert all(lazy_state(model))
    return f"{type(error).__name__}: {error}"


def interrupted(path: str) -> dict[str, Any]:
    """Somebody presses Ctrl-C at rank 1."""
    model = lazy_model("nf4")

    def on_step(done: int, total: int) -> None:
        if dist.get_rank() == 1:
            raise KeyboardInterrupt

    try:
        dormant.load(model, path, progress=on_step)
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}", "lazy": lazy_state(model)}
    return {"error": "None", "lazy": lazy_state(model)}


def _prepare(
    arguments: list[str],
) -> Callable[[killed.Progress], tuple[BaseException | None, bool]]:
    (path,) = arguments
    model = lazy_model("nf4")

    def load(on_step: killed.Progress) -> tuple[BaseException | None, bool]:
        try:
            dormant.load(model, path, progress=on_step)
        except RuntimeError as error:
            return error, all(lazy_state(model))
        return None, all(lazy_state(model))

    return load


if __name__ == "__main__":
    killed.run(_prepare)
