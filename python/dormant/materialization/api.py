"""`materialize`: gives lazy tensors their memory and their values."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import torch

from dormant._extension import _C
from dormant.materialization.options import (
    check_choice,
    check_device,
    check_dtype,
    check_memory_budget,
)
from dormant.quantization.layers import check_sharding, forget_sources
from dormant.quantization.layerwise import finish_layerwise, pending_layers
from dormant.recording import patches
from dormant.reporting.memory import MemoryTrace, PeakMemory
from dormant.reporting.progress import Callback, ProgressBar, wants_bar
from dormant.reporting.report import Origin, Report, TensorReport, with_memory_trace
from dormant.reporting.tally import Tally
from dormant.tensors.conversion import as_dtype, convert
from dormant.tensors.inventory import (
    Inventory,
    InventoryEntry,
    is_wrapper,
    owns_storage,
    take_inventory,
)
from dormant.tensors.reachable import reachable_tensors

Values = Literal["exact", "fast", "empty"]
_FAST_PATH = "Philox 4x32-10, not PyTorch's values"
Target: TypeAlias = (
    "torch.nn.Module | torch.Tensor | Mapping[str, object] | "
    "Iterable[torch.nn.Module | torch.Tensor | Mapping[str, object]]"
)


def is_lazy(target: torch.Tensor | torch.nn.Module) -> bool:
    """Whether a tensor has no memory yet, or a module holds any such tensor.

    Args:
        target: a tensor, or a module; of a module every tensor it holds counts: parameters,
            buffers, gradients and tensors in any attribute.

    Returns:
        True while any of them is lazy.

    Raises:
        TypeError: `target` is neither.

    Example:
        >>> import torch, dormant
        >>> dormant.is_lazy(torch.nn.Linear(2, 2))
        False
    """
    if not isinstance(target, (torch.Tensor, torch.nn.Module)):
        raise TypeError(f"is_lazy: expected a tensor or a module, got {type(target).__name__}.")
    if isinstance(target, torch.Tensor) and not is_wrapper(target):
        return _lacks_memory(target)
    return any(_lacks_memory(tensor) for _, tensor in reachable_tensors(target))


def _lacks_memory(tensor: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return owns_storage(tensor) and _C.is_lazy(tensor)


def materialize(
    target: Target,
    *,
    values: Values = "exact",
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    mmap: Literal["auto", "always", "never"] = "auto",
    progress: bool | Callback | None = None,
    trace_memory: bool = False,
    verbose: bool = False,
) -> Report:
    """Brings lazy tensors to life in place, bit-equal to eager construction.

    Every object that refers to them (parameters, ties, views, optimizers, `state_dict` entries) is
    the same object afterwards, and valid. Tensors that are already real are left as they are. Order
    does not matter: any part may be materialised at any time. Of a storage that a single view
    refers to, only the view's part takes memory; the rest, which `as_strided` could show, is zero.

    It is atomic for each storage: when it fails (out of memory, Ctrl-C), what was finished is real,
    the rest is still lazy, and it can be called again.

    Args:
        target: a module, a tensor, a mapping such as a state dict, or an iterable of these. Of a
            module, every tensor it holds in any attribute is materialised.
        values: "exact" gives the values of eager construction. "fast" gives other values of the
            same distributions, at the speed of memory, as for debugging or benchmarks: uniform,
            normal and Bernoulli numbers, and everything computed from them tile by tile, come from
            Philox 4x32-10 with a seed of its own. They depend on `torch.manual_seed` at recording,
            not on threads, order or parts, and do not move PyTorch's generator. What can only be
            replayed whole (QR, other distributions) keeps its exact values, and so do normal
            tensors of fewer than 16 elements. "empty" gives memory without values (for weights
            that are loaded next).
        device: where the tensors shall be, as in `module.to(device)`: parameters stay the same
            objects. Each tensor is computed on the CPU and moved before the next.
        dtype: floating point and complex tensors get this dtype, as in `module.to(dtype)`, without
            a copy in the old dtype. Aliases outside `target` keep theirs.
        memory_budget: bytes that materialising may take besides the final tensors; None sets no
            bound. Tensors get smaller tiles, and fewer threads, to fit.
        mmap: whether tensors that are bytes of a checkpoint file and nothing else may show them in
            place, as for `load`.
        progress: True shows a progress bar, False none; a function is called with (done, total)
            bytes; None shows a bar where stderr is a terminal and it takes longer than a second.
        trace_memory: look at the memory of the process every few milliseconds from a thread of its
            own; `Report.memory_trace` holds what it saw, and `Report.plot` draws it.
        verbose: print the report.

    Returns:
        What was done to each tensor, and what it cost.

    Raises:
        TypeError: `target`, `dtype` or `memory_budget` is of a type that cannot be used.
        ValueError: `values` or `device` is not one of those possible, or `memory_budget` is too
            small to work in; the message says the minimum, and nothing was materialised.
        NotImplementedError: an operator cannot be replayed; the message names it.
        RuntimeError: an operator failed, as out of memory; its message says which.
        KeyboardInterrupt: the user interrupted it.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init():
        ...     model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        >>> report = dormant.materialize(model, dtype=torch.bfloat16)
        >>> model[0].weight.dtype, report.count("initialised")
        (torch.bfloat16, 6)
    """
    _check_values(values)
    check_dtype(dtype, "materialize")
    place = check_device(device, "materialize")
    check_memory_budget(memory_budget, "materialize")
    check_choice(mmap, ("auto", "always", "never"), "mmap", "materialize")
    with MemoryTrace(trace_memory) as trace:
        report = bring_to_life(
            _roots(target),
            values=values,
            place=place,
            dtype=dtype,
            memory_budget=memory_budget,
            mmap=mmap,
            progress=progress,
        )
    report = with_memory_trace(report, trace.samples)
    if verbose:
        print(report)
    return report


def bring_to_life(
    roots: list[tuple[str, object]],
    *,
    values: Values = "exact",
    place: torch.device | None = None,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    mmap: Literal["auto", "always", "never"] = "auto",
    progress: bool | Callback | None = None,
) -> Report:
    """`materialize` of named objects, its options checked."""
    started = time.perf_counter()
    check_sharding(root for _, root in roots)
    peak = PeakMemory()
    finished: dict[int, _C.MaterializedStorage] = {}

    if dtype is not None:
        convert(roots, as_dtype(dtype))
    quantized: dict[str, list[_C.MaterializedStorage]] = {}
    with steps("materialize", progress, peak) as tell:
        inventory = take_inventory(roots)
        tally = Tally(inventory.lazy_nbytes, tell)

        def realize_layer(layer: torch.nn.Module, name: str) -> None:
            quantized[name] = _realize_layer(layer, values, tally, memory_budget, mmap)

        if values != "empty" and any(pending_layers(root) for _, root in roots):
            del inventory  # which would keep the layers that are replaced
            finish_layerwise(roots, realize_layer)
            inventory = take_inventory(roots)
        origins: dict[int, Origin] = {}
        for name, layer_storages in quantized.items():
            finished.update((each["storage"], each) for each in layer_storages)
            read = any(each["read_bytes"] for each in layer_storages)
            origin: Origin = "checkpoint" if read else "initialised"
            origins.update(dict.fromkeys(_count_as_lazy(inventory, name), origin))

        def realize(tensors: list[torch.Tensor], on_step: Callback) -> None:
            for storage in _C.materialize(tensors, values, on_step, memory_budget, mmap):
                finished[storage["storage"]] = storage

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if _lacks_memory(tensor):
                realize([tensor], tally.part(_C.storage_nbytes(tensor)))
            return tensor.to(place)

        try:
            if place is not None:
                convert(roots, moved)
            pending = [t for t in inventory.lazy_storages.values() if _C.is_lazy(t)]
            if pending:
                realize(pending, tally.rest())
        finally:
            for tensor in inventory.objects:
                _C.settle(tensor)
    forget_sources(root for _, root in roots)
    patches.uninstall_if_idle()
    return make_report(
        inventory,
        finished,
        values=values,
        seconds=time.perf_counter() - started,
        peak_memory=peak.result(),
        origins=origins,
    )


def _realize_layer(
    layer: torch.nn.Module,
    values: Values,
    tally: Tally,
    memory_budget: int | None,
    mmap: Literal["auto", "always", "never"],
) -> list[_C.MaterializedStorage]:
    inventory = take_inventory([("", layer)])
    tensors = list(inventory.lazy_storages.values())
    on_step = tally.part(inventory.lazy_nbytes)
    storages = _C.materialize(tensors, values, on_step, memory_budget, mmap)
    for tensor in inventory.objects:
        _C.settle(tensor)
    return storages


def _count_as_lazy(inventory: Inventory, layer: str) -> list[int]:
    """The storages of what a quantiser made of a lazy layer, which were lazy for the report."""
    storages = []
    for entry in inventory.entries:
        if any(not layer or name.startswith(f"{layer}.") for name in entry.names):
            entry.lazy = True
            inventory.lazy_storages.setdefault(entry.storage, entry.tensor)
            storages.append(entry.storage)
    return storages


@contextlib.contextmanager
def steps(title: str, progress: bool | Callback | None, peak: PeakMemory) -> Iterator[Callback]:
    """What the core calls after each step: looks at the memory, and tells who wants to know."""
    with ProgressBar(title) as bar:
        tell = progress if callable(progress) else bar if wants_bar(progress) else None

        def on_step(done: int, total: int) -> None:
            peak.sample()
            if tell is not None:
                tell(done, total)

        yield on_step


def make_report(
    inventory: Inventory,
    finished: Mapping[int, _C.MaterializedStorage],
    *,
    values: Values,
    seconds: float,
    peak_memory: int | None,
    origins: Mapping[int, Origin] = MappingProxyType({}),
) -> Report:
    """The report of an operation.

    Args:
        inventory: what the target held before.
        finished: what was done, by storage.
        values: which values lazy tensors were given.
        seconds: time taken.
        peak_memory: highest resident memory, in bytes.
        origins: of storages that `finished` does not tell of.
    """

    def origin(storage: int, lazy: bool) -> Origin:
        if storage in origins:
            return origins[storage]
        done = finished.get(storage)
        if done is not None and done["read_bytes"] > 0:
            return "checkpoint"
        if not lazy and done is None:
            return "already real"
        return "empty" if values == "empty" else "initialised"

    def tensor_report(entry: InventoryEntry) -> TensorReport:
        done = finished.get(entry.storage)
        return TensorReport(
            names=tuple(entry.names),
            shape=entry.shape,
            dtype=entry.dtype,
            nbytes=entry.nbytes,
            origin=origin(entry.storage, entry.lazy),
            operators=0 if done is None else done["operators"],
            storage=entry.storage,
            way=None if done is None else done["way"],
            files=() if done is None else tuple(done["sources"]),
        )

    return Report(
        tensors=[tensor_report(entry) for entry in inventory.entries],
        storages=len(inventory.storage_nbytes),
        nbytes=inventory.nbytes,
        lazy_nbytes=inventory.lazy_nbytes,
        operators=sum(done["operators"] for done in finished.values()),
        seconds=seconds,
        peak_memory=peak_memory,
        value_reads=_C.value_reads(),
        random_path=_FAST_PATH if values == "fast" else _C.exact_path(),
        values=values,
        read_bytes=sum(done["read_bytes"] for done in finished.values()),
        initialised_bytes=sum(done["initialised_bytes"] for done in finished.values()),
    )


def _roots(target: Target) -> list[tuple[str, object]]:
    """Names what `target` consists of; a module's own names need no prefix."""
    if isinstance(target, (torch.nn.Module, torch.Tensor, Mapping)):
        return _named("", target)
    if not isinstance(target, Iterable) or isinstance(target, (str, bytes)):
        raise TypeError(
            "materialize: target must be a module, a tensor, a mapping such as a state dict, or an "
            f"iterable of these; got {type(target).__name__}."
        )
    roots: list[tuple[str, object]] = []
    for position, item in enumerate(target):
        if not isinstance(item, (torch.nn.Module, torch.Tensor, Mapping)):
            hint = " For (name, tensor) pairs pass dict(pairs)." if isinstance(item, tuple) else ""
            raise TypeError(
                "materialize: an iterable target must hold modules, tensors or mappings; item "
                f"{position} is a {type(item).__name__}.{hint}"
            )
        roots.extend(_named(f"[{position}]", item))
    return roots


def _named(name: str, item: object) -> list[tuple[str, object]]:
    if isinstance(item, Mapping):
        prefix = f"{name}." if name else ""
        return [(f"{prefix}{key}", value) for key, value in item.items()]
    return [(name or ("tensor" if isinstance(item, torch.Tensor) else ""), item)]


def _check_values(values: str) -> None:
    if values not in get_args(Values):
        raise ValueError(f'materialize: values must be "exact", "fast" or "empty", got {values!r}.')
