"""Ranks that need the same bytes of a checkpoint, and read each of them once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 (imported before the ranks are forked)
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor import distribute_tensor as distribute
from torch.nn.parallel import DistributedDataParallel

import dormant
from dormant import _C
from dormant.materialization import shared_reads
from dormant.ranks.together import Together
from dormant.reporting.memory import highest_resident_bytes, resident_bytes
from dormant.reporting.report import Report
from jobs import killed
from jobs.held import keyed_names, lazy_names, local_of, local_tensors
from jobs.loading import characters_read
from jobs.models import SEED, Large, Layered, TiedModel, Wide


class Shapes(nn.Module):
    """Ties, two parameters in one storage, a transposed one, buffers, and what no file has."""

    whole: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tied = TiedModel()
        pair = torch.empty(6, 8).normal_()
        self.first, self.second = nn.Parameter(pair[:2]), nn.Parameter(pair[2:])
        self.transposed = nn.Parameter(torch.empty(6, 4).uniform_().t())
        self.register_buffer("whole", torch.ones(7, dtype=torch.int64))
        self.register_buffer("steps", torch.arange(5.0) / 3, persistent=False)
        self.missing = nn.Parameter(torch.empty(9).normal_())


class Packable(nn.Module):
    """That of tests/lib/every_format.py."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 64)
        self.experts = nn.Parameter(torch.empty(2, 64, 24).normal_())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Shapes": Shapes,
    "Layered": Layered,
    "Packable": Packable,
    "Wide": Wide,
}


def _place(model: nn.Module, mesh: DeviceMesh, *placements: Placement) -> nn.Module:
    def partition(_: str, part: nn.Module, __: Any) -> None:
        for name, parameter in list(part.named_parameters(recurse=False)):
            placed = distribute(parameter, mesh, list(placements), src_data_rank=None)
            part.register_parameter(name, nn.Parameter(placed))

    return distribute_module(model, mesh, partition)


def _square() -> DeviceMesh:
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("r", "s"))


def _hsdp(model: Any) -> nn.Module:
    mesh = _square()
    for layer in model.children():
        for each in layer if isinstance(layer, nn.ModuleList) else [layer]:
            fully_shard(each, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _mixed(model: Any) -> nn.Module:
    """Weights in parts, biases in none, and a layer that is left as it is."""
    mesh = _square()
    for layer in model.layers:
        for name, parameter in list(layer.named_parameters()):
            placement = Shard(0) if name == "weight" else Replicate()
            placed = distribute(parameter, mesh, [Replicate(), placement], src_data_rank=None)
            layer.register_parameter(name, nn.Parameter(placed))
    whole: nn.Module = model
    return whole


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": lambda model: model,
    "wrapped DDP": lambda model: DistributedDataParallel(model, init_sync=False),
    "HSDP": _hsdp,
    "replicated": lambda model: _place(
        model, init_device_mesh("cpu", (dist.get_world_size(),)), Replicate()
    ),
    "replicated twice": lambda model: _place(model, _square(), Replicate(), Replicate()),
    "DP x TP": lambda model: _place(model, _square(), Replicate(), Shard(0)),
    "TP x DP": lambda model: _place(model, _square(), Shard(0), Replicate()),
    "mixed": _mixed,
    "FSDP": lambda model: fully_shard(model),  # type: ignore[dict-item]
}


def lazy_model(kind: str, way: str, quantized: str | None = None, seed: int = SEED) -> Any:
    torch.manual_seed(seed)
    with dormant.lazy_init():
        model = MODELS[kind]()
    if quantized is not None:
        dormant.quantize(model, quantized, skip=["head"] if kind == "Layered" else ())
    return WAYS[way](model)


def small_ticks(tick: int) -> None:
    """Tensors of the tests are small: as if they were large."""
    shared_reads._TICK = tick
    shared_reads._PIECE = max(100, tick // 4)


def load(
    kind: str,
    way: str,
    path: str,
    *,
    deferred: bool = False,
    quantized: str | None = None,
    tick: int = 512,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Loads a checkpoint with shared reads, and says what this rank has and has read."""
    small_ticks(tick)
    model = lazy_model(kind, way, quantized)
    lazy = lazy_names(model)
    options = {"missing": "init", "share_reads": True, **(options or {})}
    steps: list[tuple[int, int]] = []
    whole = model.module if way == "wrapped DDP" else model
    if deferred:
        share = options.pop("share_reads")
        dormant.load(whole, path, materialize=False, **options)
        assert lazy == lazy_names(model)
        report = dormant.materialize(
            model, share_reads=share, progress=lambda *step: steps.append(step)
        )
    else:
        report = dormant.load(whole, path, progress=lambda *step: steps.append(step), **options)
    return {**found(model, report), "lazy before": lazy, "steps": steps}


def found(model: nn.Module, report: Report) -> dict[str, Any]:
    """What a rank has and has read."""
    return {
        "lazy after": lazy_names(model),
        "keyed after": keyed_names(model),
        "local": local_tensors(model),
        "statistics": _statistics(model),
        "read": report.read_bytes,
        "origins": {tensor.names[0]: tensor.origin for tensor in report.tensors},
        "ways": {tensor.names[0]: tensor.way for tensor in report.tensors},
        "files": {tensor.names[0]: tensor.files for tensor in report.tensors},
    }


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in model.named_modules():
        state = vars(module).get("quant_state")
        if state is not None:
            found[f"{name}.absmax"] = state.absmax.clone()
            if state.nested:
                found[f"{name}.nested"] = state.state2.absmax.clone()
                found[f"{name}.offset"] = state.offset.clone()
        if "state" in vars(module):
            weight: Any = module._parameters["weight"]
            scales = module.state.SCB
            found[f"{name}.SCB"] = (weight.SCB if scales is None else scales).clone()
    return found


def expected(kind: str, way: str, path: str) -> dict[str, torch.Tensor]:
    """What this rank has when every rank reads for itself."""
    model = lazy_model(kind, way)
    dormant.load(model.module if way == "wrapped DDP" else model, path, missing="init")
    return local_tensors(model)


def compared(kind: str, way: str, path: str, tick: int) -> dict[str, Any]:
    """The same model with and without shared reads, load and materialize."""
    without = expected(kind, way, path)
    result = load(kind, way, path, tick=tick)
    later = load(kind, way, path, tick=tick, deferred=True)
    return {**result, "without": without, "later": later}


def bytes_read(path: str, share: bool, way: str, quantized: str | None) -> int:
    """Bytes that read calls gave this process while it loaded."""
    model = lazy_model("Wide", way, quantized)
    before = characters_read()
    dormant.load(model, path, share_reads=share, mmap="never")
    return characters_read() - before


def flat(path: str) -> dict[str, Any]:
    """FSDP1: each rank has another part of one flat parameter, and the same buffers."""
    states = []
    for share in (False, True):
        torch.manual_seed(SEED)
        with dormant.lazy_init():
            model: Any = Layered()
            model.register_buffer("steps", torch.arange(4.0))
        dormant.load(model, path, materialize=False, missing="error")
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
        dormant.materialize(model, share_reads=share)
        states.append(local_tensors(model))
    return {"without": states[0], "local": states[1]}


def stages(paths: list[str]) -> dict[str, Any]:
    """Two pairs of ranks: each pair has a model of its own, replicated but for one layer."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "replica"))
    stage = mesh.get_local_rank("stage")
    model = lazy_model("Layered", "DDP")
    if stage == 1:
        del model.layers[0]
    _place(model.layers, mesh["replica"], Replicate())
    report = dormant.load(model, paths[stage], share_reads=True, unexpected="error")
    return found(model, report)


def into_real(path: str, other: str) -> dict[str, Any]:
    """A second load, into the memory of the first."""
    model = lazy_model("Layered", "DDP")
    dormant.load(model, path, share_reads=True)
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    report = dormant.load(model, other, share_reads=True)
    same = memory == [parameter.data_ptr() for parameter in model.parameters()]
    return {**found(model, report), "same memory": same}


def aliases(path: str) -> dict[str, Any]:
    """An alias that somebody keeps, and a view, see what was received."""
    model = lazy_model("Layered", "DDP")
    alias, view = model.layers[0].weight.detach(), model.layers[1].weight[3]
    dormant.load(model, path, share_reads=True)
    return {
        "alias": torch.equal(alias, model.layers[0].weight),
        "view": torch.equal(view, model.layers[1].weight[3]),
        "same memory": alias.data_ptr() == model.layers[0].weight.data_ptr(),
    }


def attempt(model: nn.Module, path: str | None, **options: Any) -> BaseException | None:
    """What `load`, or without a path `materialize`, raises."""
    try:
        if path is None:
            dormant.materialize(model, share_reads=True, **options)
        else:
            dormant.load(model, path, share_reads=True, **options)
    except BaseException as error:
        return error
    return None


def one_fails(way: str, path: str, bad_path: str) -> dict[str, Any]:
    """Rank 1 gets another path; all try once more with the right one."""
    small_ticks(512)
    model = lazy_model("Layered", way)
    began = time.monotonic()
    error = attempt(model, bad_path if dist.get_rank() == 1 else path)
    result = {
        "error": (type(error).__name__, str(error)),
        "errno": getattr(error, "errno", None),
        "seconds": time.monotonic() - began,
        "lazy": lazy_names(model),
    }
    return {**result, "again": repr(attempt(model, path)), "local": local_tensors(model)}


def cut_while_recorded(way: str, path: str, copy: str) -> dict[str, Any]:
    """The file of rank 1 is cut off after it was recorded: reading it fails."""
    small_ticks(512)
    rank = dist.get_rank()
    model = lazy_model("Layered", way)
    mine = copy if rank == 1 else path
    dormant.load(model, mine, materialize=False)
    if rank == 1:
        with Path(copy).open("r+b") as file:
            file.truncate(3000)
    error = attempt(model, None)
    lazy = lazy_names(model)
    again = repr(attempt(model, path))
    return {
        "error": (type(error).__name__, str(error)),
        "lazy": lazy,
        "again": again,
        "local": local_tensors(model),
    }


def every_step_fails(
    way: str, path: str, kind: str, ranks: list[int], quantized: str | None
) -> dict[str, Any]:
    """The n-th allocation or read fails on some ranks, for every n that there is."""
    small_ticks(4096)
    rank = dist.get_rank()
    model = lazy_model("Layered", way, quantized)
    _C.set_faults(f"{kind}:0")
    attempt(model, path)
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, _C.set_faults("")[kind])
    most = max(counts)
    kept, raised = [], []
    first: dict[str, torch.Tensor] = {}
    for n in sorted({1 + i * (most - 1) // 23 for i in range(24)}):
        model = lazy_model("Layered", way, quantized)
        if rank in ranks:
            _C.set_faults(f"{kind}:{n}")
        error = attempt(model, path)
        _C.set_faults("")
        raised.append(type(error).__name__)
        kept.append(len(lazy_names(model)))
        error = attempt(model, path)
        if error is not None:
            raise error
        state = local_tensors(model)
        first = first or state
        assert all(torch.equal(first[name], state[name]) for name in first), n
    return {"raised": raised, "lazy": kept, "parameters": len(first), "local": first}


def interrupted_at_the_end(way: str, path: str) -> dict[str, Any]:
    """Somebody presses Ctrl-C at rank 1 when it has its part and waits for the others."""
    model = lazy_model("Layered", way)
    conclude = Together.conclude

    def interrupted(self: Together) -> None:
        if dist.get_rank() == 0:
            time.sleep(1)
        elif dist.get_rank() == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        conclude(self)

    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Together, "conclude", interrupted)
        error = attempt(model, path)
    return {"error": type(error).__name__, "lazy": lazy_names(model), "local": local_tensors(model)}


def interrupted(way: str, path: str, after: int, waiting: bool) -> dict[str, Any]:
    """Somebody presses Ctrl-C at rank 1: while it reads, or while it waits for rank 0."""
    small_ticks(4096)
    model = lazy_model("Layered", way)
    calls = 0

    def on_step(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls != after:
            return
        if waiting and dist.get_rank() == 0:
            time.sleep(1)  # the others wait for this rank
        elif waiting and dist.get_rank() == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        elif dist.get_rank() == 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    error = attempt(model, path, progress=on_step)
    lazy = lazy_names(model)
    again = repr(attempt(model, path))
    return {
        "error": f"{type(error).__name__}: {error}",
        "lazy": lazy,
        "again": again,
        "local": local_tensors(model),
    }


def differing(what: str, path: str, other: str) -> list[Any]:
    """Rank 1 has recorded something else."""
    rank = dist.get_rank()
    way = "FSDP" if what == "option" else "DDP"
    kind = "Shapes" if what == "names" and rank == 1 else "Layered"
    model = lazy_model(kind, way)
    share = not (what == "option" and rank == 1)
    mine = other if rank == 1 and what in ("names", "file") else path
    dormant.load(model, mine, materialize=False, missing="init")
    if rank == 1 and what == "rows":
        with torch.no_grad():
            model.head.weight.copy_(model.head.weight.flip(0))
    elif rank == 1 and what == "draws":
        with torch.no_grad():
            model.head.weight[0].normal_()
    elif rank == 1 and what == "constants":
        with torch.no_grad():
            model.head.weight.add_(torch.full((64,), 0.5))
    lazy = lazy_names(model)
    try:
        dormant.materialize(model, share_reads=share)
    except ValueError as error:
        return [str(error), lazy == lazy_names(model)]
    return ["", False]


def peak(way: str, path: str, width: int) -> dict[str, int]:
    """Bytes of this rank's part, and how far the resident memory rose above where it was."""

    def build(size: int) -> nn.Module:
        with dormant.lazy_init():
            model: nn.Module = Large(size)
        if way == "HSDP":
            mesh = _square()
            for block in model.get_submodule("blocks").children():
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return model

    dormant.load(build(64), f"{path}.small", share_reads=True)
    before = resident_bytes()
    model = build(width)
    dormant.load(model, path, share_reads=True)
    after = highest_resident_bytes()
    assert before is not None
    assert after is not None
    part = sum(local_of(parameter).nbytes for parameter in model.parameters())
    return {"part": part, "peak": after - before}


def _prepare(
    arguments: list[str],
) -> Callable[[killed.Progress], tuple[BaseException | None, bool]]:
    path, way = arguments
    small_ticks(4096)
    model = lazy_model("Layered", way)

    def load(on_step: killed.Progress) -> tuple[BaseException | None, bool]:
        error = attempt(model, path, progress=on_step)
        return error, len(lazy_names(model)) == len(list(model.parameters()))

    return load


if __name__ == "__main__":
    killed.run(_prepare, after=0.5)
