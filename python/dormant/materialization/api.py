"""`materialize`: gives lazy tensors their memory and their values."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

import torch

from dormant._extension import _C
from dormant.materialization.device_copies import DeviceCopies
from dormant.materialization.exhausted_memory import explained
from dormant.materialization.options import (
    MaterializeOptions,
    Mmap,
    check_dtype,
    checked_options,
)
from dormant.materialization.shared_reads import read_once
from dormant.materialization.snapshot import all_or_nothing
from dormant.quantization.layers import adopt_parts, forget_sources
from dormant.quantization.layerwise import finish_layerwise, pending_layers
from dormant.quantization.parts import parts_of, quantize_parts
from dormant.ranks.together import Together
from dormant.recording import patches
from dormant.reporting.memory import MemoryTrace, PeakMemory
from dormant.reporting.progress import Callback, following
from dormant.reporting.random_path import random_path
from dormant.reporting.report import Origin, Report, TensorReport, with_memory_trace
from dormant.reporting.tally import Tally
from dormant.tensors.conversion import convert_dtype
from dormant.tensors.device import check_device
from dormant.tensors.identity import is_meta, is_wrapper, owns_storage
from dormant.tensors.inventory import Inventory, InventoryEntry, take_inventory
from dormant.tensors.reachable import is_module, is_tensor, reachable_tensors
from dormant.tensors.targets import Target, roots_of
from dormant.text.printable import printable
from dormant.text.table import format_count

Values = Literal["exact", "fast", "empty"]


def is_lazy(target: Target) -> bool:
    """Whether a tensor, or any tensor in an object, has no memory yet.

    Args:
        target: a tensor, a module, a mapping such as a state dict or a `Checkpoint`, or an iterable
            of these. Every tensor that a module holds counts: parameters, buffers, gradients and
            tensors in any attribute. An iterator is consumed.

    Returns:
        True if any of them is lazy. Meta tensors are not lazy: they never get values.

    Raises:
        TypeError: `target` is none of these.

    Example:
        >>> import torch, dormant
        >>> dormant.is_lazy(torch.nn.Linear(2, 2))
        False
        >>> with dormant.lazy_init():
        ...     layer = torch.nn.Linear(2, 2)
        >>> dormant.is_lazy(layer.state_dict())
        True
    """
    if is_tensor(target) and not is_wrapper(target):
        return _lacks_memory(target)
    return any(
        _lacks_memory(tensor)
        for name, root in roots_of(target, "is_lazy")
        for _, tensor in reachable_tensors(root, name)
    )


def _lacks_memory(tensor: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return owns_storage(tensor) and not is_meta(tensor) and _C.is_lazy(tensor)


def materialize(
    target: Target,
    *,
    values: Values = "exact",
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    share_reads: bool = False,
    progress: bool | Callback | None = None,
    trace_memory: bool = False,
    verbose: bool = False,
) -> Report:
    """Materializes lazy tensors in place, bit-identical to eager construction.

    Every object that refers to them (parameters, ties, views, optimizers, `state_dict` entries)
    stays the same object and is valid afterwards. Tensors that are already real are unchanged. So
    are tensors on the meta device, which have no values; a warning names them. Order does not
    matter: any part may be materialized at any time. If only a single view refers to a storage,
    only the view's part takes memory; the rest, which `as_strided` could show, is zero.

    It is atomic for each storage. If it fails (out of memory, Ctrl-C), finished storages are real,
    the others are still lazy, and you can call it again. If the parameters of a module are sharded,
    all ranks that have parts of it must materialize it together: it succeeds on all of them or on
    none.

    Args:
        target: a module, a tensor, a mapping such as a state dict, or an iterable of these. Every
            tensor that a module holds in any attribute is materialized. A `Checkpoint` is refused,
            because it creates a new tensor at each access: keep its tensors, `dict(checkpoint)`.
        values: "exact" gives the values of eager construction. "fast" gives other values of the
            same distributions, at the speed of memory, for debugging or benchmarks: uniform, normal
            and Bernoulli numbers, and everything that is computed from them tile by tile, come from
            Philox 4x32-10 with a separate seed. They depend on `torch.manual_seed` at recording,
            not on threads, order or parts, and do not advance PyTorch's generator. Tensors that can
            only be replayed whole (QR, other distributions) keep their exact values, and so do
            normal tensors with fewer than 16 elements. "empty" gives memory without values (for
            weights that are loaded next).
        device: the device of the final tensors, as in `module.to(device)`; parameters stay the same
            objects. Values are computed on the CPU and copied in pieces while the next ones are
            computed, so the CPU's memory never holds a whole tensor, unless it is packed.
        dtype: floating-point and complex tensors get this dtype, without a copy in the old one. In
            a module, these are the parameters and the persistent buffers. Tables that the module
            computes (non-persistent buffers, such as rotary frequencies) keep their precision, and
            so does what a model of transformers or diffusers keeps in float32, unlike with
            `module.to(dtype)`. Aliases outside `target` keep their dtype.
        memory_budget: bytes that materializing may take besides the final tensors, a number or
            text like "2GiB"; None sets no limit. To stay within it, tensors get smaller tiles and
            fewer threads.
        mmap: whether tensors that are bytes of a checkpoint file and nothing else may map them in
            place, as for `load`.
        share_reads: whether ranks of torch.distributed that need the same bytes of files read them
            once, as for `load`. All ranks of the default process group must call it, with modules.
        progress: True shows a progress bar, False none. A function is called with (done, total)
            bytes. None shows a bar if stderr is a terminal and it takes longer than a second.
        trace_memory: measure the memory of the process every few milliseconds in a separate thread;
            `Report.memory_trace` holds the measurements, and `Report.plot` draws them.
        verbose: print the report.

    Returns:
        What was done to each tensor, and what it cost.

    Raises:
        TypeError: `target`, `dtype` or `memory_budget` has a type that cannot be used, or `target`
            is a `Checkpoint`.
        ValueError: `values` or `device` is not one of the possible values; or `memory_budget` is
            too small: the message says the minimum, and nothing was materialized; or ranks that
            have parts of one parameter have recorded different values for it.
        NotImplementedError: an operator cannot be replayed; the message names it.
        MemoryError: memory is exhausted; the message says how much is needed and how much is free.
        RuntimeError: an operator failed; the message names it. Or another rank failed or is gone;
            if that rank raised one of these errors, this rank raises the same one.
        KeyboardInterrupt: the user interrupted it.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init():
        ...     model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        >>> report = dormant.materialize(model, dtype=torch.bfloat16)
        >>> model[0].weight.dtype, report.count("initialized")
        (torch.bfloat16, 6)
    """
    _check_values(values)
    check_dtype(dtype, "materialize")
    place = check_device(device, "materialize")
    options = checked_options(
        "materialize",
        memory_budget=memory_budget,
        mmap=mmap,
        progress=progress,
        share_reads=share_reads,
    )
    with MemoryTrace(trace_memory) as trace:
        roots = roots_of(target, "materialize", changes=True)
        targets = [root for _, root in roots]
        with Together("materialize", targets, shares_reads=share_reads) as together:
            report = bring_to_life(
                roots, options, together, values=values, place=place, dtype=dtype
            )
    patches.uninstall_if_idle()  # the lazy tensors that a device got copies of are gone
    report = with_memory_trace(report, trace.samples)
    if verbose:
        print(report)
    return report


def bring_to_life(
    roots: list[tuple[str, object]],
    options: MaterializeOptions,
    together: Together,
    *,
    values: Values = "exact",
    place: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Report:
    """`materialize` of named objects with checked options, together with ranks of other parts."""
    started = time.perf_counter()
    adopt_parts((root for _, root in roots), "materialize")
    peak = PeakMemory()
    finished: dict[int, _C.MaterializedStorage] = {}

    with (
        explained("materialize", roots),
        steps("materialize", options.progress, peak) as tell,
        all_or_nothing(roots, together),
    ):
        if dtype is not None:
            convert_dtype(roots, dtype)
        quantized: dict[str, list[_C.MaterializedStorage]] = {}
        inventory = take_inventory(roots)
        tally = Tally(inventory.lazy_nbytes, tell)
        path = random_path(inventory.lazy_storages.values(), values)

        def realize_layer(layer: torch.nn.Module, name: str) -> None:
            quantized[name] = _realize_layer(layer, values, tally, options)

        if values != "empty" and any(pending_layers(root) for _, root in roots):
            del inventory  # it would keep the replaced layers alive
            finish_layerwise(roots, realize_layer)
            inventory = take_inventory(roots)
        origins: dict[int, Origin] = {}
        for name, layer_storages in quantized.items():
            finished.update((each["storage"], each) for each in layer_storages)
            read = any(each["read_bytes"] for each in layer_storages)
            origin: Origin = "checkpoint" if read else "initialized"
            origins.update(dict.fromkeys(_count_as_lazy(inventory, name), origin))

        def realize(tensors: list[torch.Tensor], on_step: Callback) -> bool:
            done = _C.materialize(tensors, values, on_step, options.memory_budget, options.mmap)
            return note(done, finished)

        if values == "exact":
            origins |= quantize_parts(parts_of(root for _, root in roots), together, realize, tally)

        if values != "empty":
            modules = [root for _, root in roots if is_module(root)]
            lazy = inventory.lazy_storages
            origins |= shared(modules, inventory, lazy, together, values, options, tally, finished)

        remaining = inventory.objects
        if place is not None:
            lazy = inventory.lazy_storages if values == "exact" else {}
            copies = DeviceCopies(
                roots,
                inventory,
                place,
                [storage for storage, tensor in lazy.items() if _C.is_lazy(tensor)],
                options=options,
                tally=tally,
                note=lambda done: note(done, finished),
            )
            aliases = inventory.objects_by_storage()

            def moved(tensor: torch.Tensor) -> torch.Tensor:
                if is_meta(tensor):
                    return tensor
                if _lacks_memory(tensor) and not copies.has(tensor):
                    same = aliases.get(_C.storage_id(tensor), ())
                    realize([tensor, *same], tally.part(_C.storage_nbytes(tensor)))
                return tensor.to(place)

            copies.move(moved)
            remaining = take_inventory(roots).objects  # what was replaced stays lazy
        realize(remaining, tally.rest())
    forget_sources(root for _, root in roots)
    _warn_of_meta_tensors(roots, inventory)
    return make_report(
        inventory,
        finished,
        values=values,
        random_path=path,
        seconds=time.perf_counter() - started,
        peak_memory=peak.result(),
        origins=origins,
    )


def _warn_of_meta_tensors(roots: list[tuple[str, object]], inventory: Inventory) -> None:
    """Warns about parameters, buffers and given tensors that can never have values."""
    meta = {id(entry.tensor): entry for entry in inventory.entries if entry.meta}
    if not meta:
        return
    given: dict[int, torch.Tensor] = {}
    for _, root in roots:
        if is_module(root):
            given.update(
                (id(tensor), tensor)
                for module in root.modules()
                # accelerate loads what it offloaded when the module is called.
                if not hasattr(module, "_hf_hook")
                for tensor in (
                    *module.parameters(recurse=False),
                    *module.buffers(recurse=False),
                )
            )
        elif is_tensor(root):
            given[id(root)] = root
    names = [printable(entry.names[0]) for key, entry in meta.items() if key in given]
    if names:
        warnings.warn(
            f"materialize: {format_count(len(names), 'tensor')} on the meta device "
            f"{'has' if len(names) == 1 else 'have'} no values and stay there: "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}. Build the model in "
            "dormant.lazy_init() instead of torch.device('meta').",
            UserWarning,
            stacklevel=4,  # the caller of materialize
        )


def _realize_layer(
    layer: torch.nn.Module, values: Values, tally: Tally, options: MaterializeOptions
) -> list[_C.MaterializedStorage]:
    inventory = take_inventory([("", layer)])
    on_step = tally.part(inventory.lazy_nbytes)
    return _C.materialize(inventory.objects, values, on_step, options.memory_budget, options.mmap)


def _count_as_lazy(inventory: Inventory, layer: str) -> list[int]:
    """The storages that a quantizer made from a lazy layer; the report counts them as lazy."""
    storages = []
    for entry in inventory.entries:
        if any(not layer or name.startswith(f"{layer}.") for name in entry.names):
            entry.lazy = True
            inventory.lazy_storages.setdefault(entry.storage, entry.tensor)
            storages.append(entry.storage)
    return storages


@contextlib.contextmanager
def steps(title: str, progress: bool | Callback | None, peak: PeakMemory) -> Iterator[Callback]:
    """The core calls this after each step: it measures memory and reports progress."""
    with following(progress, title) as tell:

        def on_step(done: int, total: int) -> None:
            peak.sample()
            if tell is not None:
                tell(done, total)

        yield on_step


def note(
    done: Iterable[_C.MaterializedStorage], finished: dict[int, _C.MaterializedStorage]
) -> bool:
    """Adds what was done to `finished`, by storage, and returns whether anything was read.

    A storage that is gone may have had the identity of a current one; its work is counted, too.
    """
    read = False
    for each in done:
        read = read or each["read_bytes"] > 0
        earlier = finished.get(each["storage"])
        if earlier is not None:
            for cost in ("operators", "read_bytes", "initialized_bytes"):
                each[cost] += earlier[cost]
        finished[each["storage"]] = each
    return read


def shared(
    modules: Sequence[torch.nn.Module],
    inventory: Inventory,
    lazy: Mapping[int, torch.Tensor],
    together: Together,
    values: Values,
    options: MaterializeOptions,
    tally: Tally,
    finished: dict[int, _C.MaterializedStorage],
) -> dict[int, Literal["checkpoint", "initialized"]]:
    """Materializes what the ranks share (shared_reads.py); returns the origins."""

    def make(
        tensors: list[torch.Tensor], what: Literal["values", "empty"], on_step: Callback | None
    ) -> list[_C.MaterializedStorage]:
        chosen = values if what == "values" else what
        # A process that accesses a mapping reads the file; here, every rank would do so at once.
        return _C.materialize(tensors, chosen, on_step, options.memory_budget, "never")

    done = read_once(modules, inventory, lazy, together, make, tally)
    note(done, finished)
    return dict.fromkeys((each["storage"] for each in done), "checkpoint")


def make_report(
    inventory: Inventory,
    finished: Mapping[int, _C.MaterializedStorage],
    *,
    values: Values,
    random_path: str,
    seconds: float,
    peak_memory: int | None,
    origins: Mapping[int, Origin] = MappingProxyType({}),
) -> Report:
    """The report of an operation.

    Args:
        inventory: what the target held before.
        finished: what was done, by storage.
        values: which values lazy tensors were given.
        random_path: for the report.
        seconds: the time that it took.
        peak_memory: highest resident memory, in bytes.
        origins: the origins of storages that `finished` does not contain.
    """

    def origin(entry: InventoryEntry) -> Origin:
        if entry.meta:
            return "meta"
        if entry.statistic and values != "empty":
            return "quantized"
        if entry.storage in origins:
            return origins[entry.storage]
        done = finished.get(entry.storage)
        if done is not None and done["read_bytes"] > 0:
            return "checkpoint"
        if not entry.lazy and done is None:
            return "real"
        return "empty" if values == "empty" else "initialized"

    def tensor_report(entry: InventoryEntry) -> TensorReport:
        done = finished.get(entry.storage)
        return TensorReport(
            names=tuple(entry.names),
            shape=entry.shape,
            dtype=entry.dtype,
            nbytes=entry.nbytes,
            origin=origin(entry),
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
        random_path=random_path,
        values=values,
        read_bytes=sum(done["read_bytes"] for done in finished.values()),
        initialized_bytes=sum(done["initialized_bytes"] for done in finished.values()),
    )


def _check_values(values: str) -> None:
    if values not in get_args(Values):
        raise ValueError(f'materialize: values must be "exact", "fast" or "empty", got {values!r}.')
