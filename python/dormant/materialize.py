"""`materialize`: gives lazy tensors their memory and their values."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import torch

from dormant import _C, patches
from dormant.convert import as_dtype, convert
from dormant.inventory import (
    Inventory,
    is_wrapper,
    owns_storage,
    take_inventory,
)
from dormant.layerwise import finish_layerwise
from dormant.memory import PeakMemory
from dormant.progress import Callback, ProgressBar, wants_bar
from dormant.quantized_layers import forget_sources
from dormant.reachable import reachable_tensors
from dormant.report import Report, TensorReport

Values = Literal["exact", "fast", "empty"]
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
    progress: bool | Callback | None = None,
    verbose: bool = False,
) -> Report:
    """Brings lazy tensors to life in place, bit-equal to eager construction.

    Every object that refers to them (parameters, ties, views, optimizers, `state_dict` entries) is
    the same object afterwards, and valid. Tensors that are already real are left as they are. Order
    does not matter: any part may be materialised at any time.

    It is atomic for each storage: when it fails (out of memory, Ctrl-C), what was finished is real,
    the rest is still lazy, and it can be called again.

    Args:
        target: a module, a tensor, a mapping such as a state dict, or an iterable of these. Of a
            module, every tensor it holds in any attribute is materialised.
        values: "exact" gives the values of eager construction; "empty" gives memory without values
            (for weights that are loaded next).
        device: where the tensors shall be, as in `module.to(device)`: parameters stay the same
            objects. Each tensor is computed on the CPU and moved before the next.
        dtype: floating point and complex tensors get this dtype, as in `module.to(dtype)`, without
            a copy in the old dtype. Aliases outside `target` keep theirs.
        memory_budget: bytes that materialising may take besides the final tensors; None sets no
            bound. Tensors get smaller tiles, and fewer threads, to fit.
        progress: True shows a progress bar, False none; a function is called with (done, total)
            steps; None shows a bar where stderr is a terminal and it takes longer than a second.
        verbose: print the report.

    Returns:
        What was done to each tensor, and what it cost.

    Raises:
        TypeError: `target`, `dtype` or `memory_budget` is of a type that cannot be used.
        ValueError: `values` or `device` is not one of those possible, or `memory_budget` is too
            small to work in; the message says the minimum, and nothing was materialised.
        NotImplementedError: `values="fast"`, or an operator that cannot be replayed; the message
            names it.
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
    started = time.perf_counter()
    _check_values(values)
    _check_dtype(dtype)
    place = _check_device(device)
    _check_memory_budget(memory_budget)
    roots = _roots(target)
    peak = PeakMemory()
    finished: dict[int, _C.MaterializedStorage] = {}

    if dtype is not None:
        convert(roots, as_dtype(dtype))
    if values == "exact":
        for _, root in roots:
            finish_layerwise(root, lambda layer: _realize_layer(layer, memory_budget))
    inventory = take_inventory(roots)
    with _steps(progress, peak) as on_step:

        def realize(tensors: list[torch.Tensor]) -> None:
            filling: Literal["exact", "empty"] = "empty" if values == "empty" else "exact"
            for storage in _C.materialize(tensors, filling, on_step, memory_budget):
                finished[storage["storage"]] = storage
            for tensor in tensors:
                _C.settle(tensor)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if _lacks_memory(tensor):
                realize([tensor])
            return tensor.to(place)

        try:
            if place is not None:
                convert(roots, moved)
            pending = [t for t in inventory.lazy_storages.values() if _C.is_lazy(t)]
            if pending:
                realize(pending)
        finally:
            for tensor in inventory.objects:
                _C.settle(tensor)
    forget_sources(root for _, root in roots)
    patches.uninstall_if_idle()
    report = _report(inventory, finished, values, time.perf_counter() - started, peak.result())
    if verbose:
        print(report)
    return report


def _realize_layer(layer: torch.nn.Module, memory_budget: int | None) -> None:
    inventory = take_inventory([("", layer)])
    _C.materialize(list(inventory.lazy_storages.values()), "exact", None, memory_budget)
    for tensor in inventory.objects:
        _C.settle(tensor)


@contextlib.contextmanager
def _steps(progress: bool | Callback | None, peak: PeakMemory) -> Iterator[Callback]:
    """What the core calls after each step: looks at the memory, and tells who wants to know."""
    with ProgressBar("materialize") as bar:
        tell = progress if callable(progress) else bar if wants_bar(progress) else None

        def on_step(done: int, total: int) -> None:
            peak.sample()
            if tell is not None:
                tell(done, total)

        yield on_step


def _report(
    inventory: Inventory,
    finished: dict[int, _C.MaterializedStorage],
    values: Values,
    seconds: float,
    peak_memory: int | None,
) -> Report:
    operators = {storage: entry["operators"] for storage, entry in finished.items()}
    ways = {storage: entry["way"] for storage, entry in finished.items()}
    return Report(
        tensors=[
            TensorReport(
                names=tuple(entry.names),
                shape=entry.shape,
                dtype=entry.dtype,
                nbytes=entry.nbytes,
                origin="already real"
                if not entry.lazy
                else "empty"
                if values == "empty"
                else "initialised",
                operators=operators.get(entry.storage, 0),
                storage=entry.storage,
                way=ways.get(entry.storage),
            )
            for entry in inventory.entries
        ],
        storages=len(inventory.storage_nbytes),
        nbytes=inventory.nbytes,
        lazy_nbytes=inventory.lazy_nbytes,
        operators=sum(operators.values()),
        seconds=seconds,
        peak_memory=peak_memory,
        value_reads=_C.value_reads(),
        random_path=_C.exact_path(),
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
    if values == "fast":
        raise NotImplementedError(
            'materialize: values="fast" is not supported yet. Use values="exact", or "empty" where '
            "the values are overwritten next."
        )
    if values not in ("exact", "empty"):
        raise ValueError(f'materialize: values must be "exact" or "empty", got {values!r}.')


def _check_memory_budget(memory_budget: int | None) -> None:
    if memory_budget is None:
        return
    if not isinstance(memory_budget, int) or isinstance(memory_budget, bool):
        raise TypeError(
            "materialize: memory_budget must be a number of bytes (int), got "
            f"{type(memory_budget).__name__}."
        )
    if memory_budget <= 0:
        raise ValueError(
            f"materialize: memory_budget must be at least one byte, got {memory_budget}. "
            "Leave it out to set no bound."
        )


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"materialize: dtype must be a torch.dtype, got {type(dtype).__name__}.")
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(
            "materialize: dtype converts parameters as module.to does, which takes floating point "
            f"and complex dtypes only; got {dtype}."
        )


def _check_device(device: torch.device | str | int | None) -> torch.device | None:
    if device is None:
        return None
    place = torch.device(device)
    if place.type == "meta":
        raise ValueError(
            "materialize: device 'meta' holds no values, so nothing could be materialised there. "
            'Use model.to("meta") to drop the values.'
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"materialize: device {str(place)!r} was asked for, but torch {torch.__version__} sees "
            "no CUDA GPU. Leave device out to materialise on the CPU."
        )
    return place
