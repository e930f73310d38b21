"""Executes a plan: gives tensors their memory and the checkpoint's values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from dormant._extension import _C
from dormant.loading.plan import Prepared, real_storages
from dormant.loading.stand_ins import StandIns
from dormant.materialization.api import make_report, note, shared, steps
from dormant.materialization.device_copies import DeviceCopies
from dormant.materialization.options import MaterializeOptions
from dormant.quantization.layers import forget_sources, tensors_of
from dormant.quantization.parts import parts_of, quantize_parts
from dormant.ranks.recording import check_same_recording
from dormant.ranks.together import Together
from dormant.reporting.memory import PeakMemory
from dormant.reporting.progress import Callback
from dormant.reporting.random_path import random_path
from dormant.reporting.report import Origin, Report
from dormant.reporting.tally import Tally
from dormant.tensors.identity import is_wrapper, owns_storage
from dormant.tensors.inventory import Inventory


def execute(
    model: torch.nn.Module,
    prepared: Prepared,
    stand_ins: StandIns,
    options: MaterializeOptions,
    together: Together,
    *,
    place: torch.device | None,
    materialize: bool,
    peak: PeakMemory,
) -> Report:
    """Reads what was planned and keeps it, or changes nothing.

    Args:
        model: the model that was prepared.
        prepared: what it has taken; this is used up.
        stand_ins: of its tensors on other devices; afterwards, it has its own again.
        options: how tensors get their values.
        together: the ranks that load the other parts.
        place: moves tensors to their final device; None leaves them on the CPU.
        materialize: False only keeps what was recorded.
        peak: has measured the memory since the load began.

    Raises:
        ValueError, OSError, RuntimeError, MemoryError, KeyboardInterrupt: as in `load`.
    """
    finished: dict[int, _C.MaterializedStorage] = {}
    held = prepared.held
    written: list[str] = []
    try:
        with steps("load", options.progress, peak) as on_step:
            on_devices = stand_ins.current_storages()
            wanted = _wanted(prepared, on_devices) if materialize else []
            path = random_path(wanted)
            nbytes = sum(_C.storage_nbytes(tensor) for tensor in wanted)
            tally = Tally(nbytes + stand_ins.nbytes, on_step)
            tally_of_devices = Tally(stand_ins.nbytes, tally.part(stand_ins.nbytes))

            def realize(
                tensors: list[torch.Tensor], on_step: Callback, held: _C.HeldTensors | None = None
            ) -> bool:
                done = _C.materialize(
                    tensors, "exact", on_step, options.memory_budget, options.mmap, held
                )
                return note(done, finished)

            check_same_recording([model], together)
            parts = parts_of([model]) if materialize else []
            packed = quantize_parts(parts, together, realize, tally)
            lazy = {_C.storage_id(tensor): tensor for tensor in wanted}
            packed |= shared(
                [model], prepared.loaded, lazy, together, "exact", options, tally, finished
            )
            copies = None
            if place is not None and materialize:
                copies = DeviceCopies(
                    [("", model)],
                    prepared.loaded,
                    place,
                    [_C.storage_id(each) for each in wanted if _C.is_lazy(each)],
                    left_alone=on_devices,
                    options=options,
                    tally=tally,
                    note=lambda done: note(done, finished),
                )
                copies.make()
                wanted = [each for each in wanted if _C.storage_id(each) not in copies.storages]
            realize(wanted, tally.rest(), held.tensors)
            exchanges = stand_ins.write(
                options, tally_of_devices, lambda done: note(done, finished), written
            )
            held.prepare_to_keep()
            together.conclude()
    except BaseException as error:
        written += held.partly_written()
        held.restore()
        if written and isinstance(error, (ValueError, OSError, RuntimeError, MemoryError)):
            raise _with_names(error, sorted(written)) from error
        raise
    held.keep()
    for tensor in prepared.loaded.objects:  # tensors that a conversion made were not held
        _C.settle(tensor)
    # What follows exchanges storages.
    origins = _known_origins(model, prepared) | packed
    for exchange in exchanges:
        exchange()
    stand_ins.leave()
    if copies is not None:
        copies.move()
    if materialize:
        forget_sources([model])
    return make_report(
        _merged(prepared.before, prepared.loaded),
        finished,
        values="exact",
        random_path=path,
        seconds=0.0,
        peak_memory=peak.result(),
        origins=origins,
    )


def _wanted(prepared: Prepared, on_devices: Collection[int]) -> list[torch.Tensor]:
    """The tensors to materialize: the lazy ones, except those that are only held."""
    had_memory = real_storages(prepared.before) | set(on_devices)
    lazy = prepared.loaded.lazy_storages
    return [tensor for storage, tensor in lazy.items() if storage not in had_memory]


def _known_origins(model: torch.nn.Module, prepared: Prepared) -> dict[int, Origin]:
    """The report's entry for storages that the core's results do not cover."""
    names = prepared.read_at_once
    tensors = tensors_of(model) if names else {}
    real = [storage for storage, origin in prepared.origins.items() if origin == "real"]
    origins: dict[int, Origin] = dict.fromkeys(real, "real")
    return origins | {
        _C.storage_id(tensors[name]): "checkpoint"
        for name in names
        if name in tensors and owns_storage(tensors[name]) and not is_wrapper(tensors[name])
    }


def _merged(before: Inventory, loaded: Inventory) -> Inventory:
    """What the model holds now; what was real before is marked as real."""
    lazy = {
        storage: tensor
        for storage, tensor in loaded.lazy_storages.items()
        if storage in before.lazy_storages or storage not in before.storage_nbytes
    }
    return Inventory(
        objects=loaded.objects,
        entries=[replace(entry, lazy=entry.storage in lazy) for entry in loaded.entries],
        storage_nbytes=loaded.storage_nbytes,
        lazy_storages=lazy,
    )


def _with_names(error: Exception, written: Sequence[str]) -> Exception:
    text = f"These tensors, real before, were written in whole or in part: {', '.join(written)}."
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{error.strerror} {text}")
    kinds = (ValueError, OSError, RuntimeError, MemoryError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    return kind(f"{error} {text}")
