"""Layers that another library, or the user's function, quantizes one at a time.

Such a quantizer needs a whole layer in full precision. `dormant.quantize` only attaches it to the
layer. `materialize` and `load` make one layer after the other real, pass it to its quantizer,
replace it by the result, and drop the original before the next one. The peak is therefore the final
model and one layer.

The quantizer is attached to its layer and moves with it: into another container, a wrapper, a deep
copy, a pickle. The places of the layer are looked up in the modules that are being materialized.
"""

from __future__ import annotations

import contextlib
import os
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

Quantizer: TypeAlias = Callable[[torch.nn.Module], torch.nn.Module]
Realize: TypeAlias = Callable[[torch.nn.Module, str], None]
Roots: TypeAlias = Sequence[tuple[str, object]]

_Holders: TypeAlias = "dict[int, list[tuple[torch.nn.Module, str]]]"

# It is in the instance dictionary, beside parameters and submodules, where no method of a module
# looks.
_ATTRIBUTE = "_dormant_quantizer"


class WaitingQuantizer:
    """The quantizer that waits for a layer. Immutable: copies of the layer share it."""

    __slots__ = ("_quantizer", "_replaced")

    def __init__(self, quantizer: Quantizer, replaced: _Replaced | None = None) -> None:
        # Objects that the function refers to do not belong to the layer: `reachable_tensors` does
        # not enter a cell.
        self._quantizer = types.CellType(quantizer)
        self._replaced = replaced

    @property
    def quantizer(self) -> Quantizer:
        """The function that takes the layer and returns the quantized one."""
        quantizer: Quantizer = self._quantizer.cell_contents
        return quantizer

    def result(self, layer: torch.nn.Module) -> torch.nn.Module | None:
        """The module that replaced `layer` elsewhere, if it is alive and still matches it."""
        return None if self._replaced is None else self._replaced.result(layer)

    def __deepcopy__(self, memo: object) -> WaitingQuantizer:
        return WaitingQuantizer(self.quantizer) if self._replaced else self

    def __reduce__(self) -> tuple[type[WaitingQuantizer], tuple[Quantizer]]:
        return WaitingQuantizer, (self.quantizer,)


class _Replaced:
    """The module that replaced a layer that others may still hold; keeps nothing alive."""

    __slots__ = ("_result", "_tensors")

    def __init__(self, layer: torch.nn.Module, result: torch.nn.Module) -> None:
        self._result = weakref.ref(result)
        self._tensors = _state_of(layer)

    def result(self, layer: torch.nn.Module) -> torch.nn.Module | None:
        return self._result() if self._tensors == _state_of(layer) else None


def postpone(layers: Iterable[torch.nn.Module], quantizer: Quantizer) -> None:
    """Attaches `quantizer` to `layers`, which it quantizes when they are materialized."""
    for layer in layers:
        vars(layer)[_ATTRIBUTE] = WaitingQuantizer(quantizer)


def quantize_now(
    model: torch.nn.Module, layers: Iterable[tuple[str, torch.nn.Module]], quantizer: Quantizer
) -> None:
    """Passes real `layers` of `model` to `quantizer`, one after the other."""
    holders = _holders([("", model)])
    for name, layer in layers:
        _replace(layer, _quantized(layer, name, quantizer), name, holders)


def pending_layers(model: object) -> list[tuple[str, torch.nn.Module]]:
    """The layers in `model` that are still to be quantized, by name; none if it is not a module."""
    if not isinstance(model, torch.nn.Module):
        return []
    return [(name, module) for name, module in model.named_modules() if is_waiting(module)]


def is_waiting(module: torch.nn.Module) -> bool:
    """Whether a quantizer waits for `module`, or has begun with it."""
    return _ATTRIBUTE in vars(module) or id(module) in _in_progress


def finish_layerwise(roots: Roots, realize: Realize) -> None:
    """Quantizes the waiting layers under `roots`, one at a time, in all places that hold them.

    Args:
        roots: names and objects; only modules are searched.
        realize: makes all tensors of one layer real; it is called with the layer and its name.

    Raises:
        TypeError: a quantizer did not return a module. That layer is real and not quantized, the
            layers before it are quantized, and the others are unchanged; it can be called again.
        ValueError: a quantizer returned another module, and nothing under `roots` holds the layer.
        Exception: an exception of a quantizer, with the same effect.
    """
    waiting = {
        id(layer): (f"{prefix}.{name}" if prefix and name else prefix or name, layer)
        for prefix, root in reversed(roots)
        for name, layer in reversed(pending_layers(root))
    }
    holders = _holders(roots) if waiting else {}
    # Popped, so that nothing here keeps a layer alive after it was replaced.
    while waiting:
        _, (name, layer) = waiting.popitem()
        with _claim(layer) as claimed:
            if claimed:
                _finish(layer, name, holders, realize)


def _finish(layer: torch.nn.Module, name: str, holders: _Holders, realize: Realize) -> None:
    found: WaitingQuantizer = vars(layer)[_ATTRIBUTE]
    known = found.result(layer)
    if known is not None:
        for parent, key in _places(layer, holders):
            parent._modules[key] = known
        return
    realize(layer, name)
    # Removed for now: what the quantizer copies or keeps of the layer does not wait.
    waiting: WaitingQuantizer = vars(layer).pop(_ATTRIBUTE)
    try:
        result = _quantized(layer, name, waiting.quantizer)
        _replace(layer, result, name, holders)
    except BaseException:
        vars(layer)[_ATTRIBUTE] = waiting
        raise
    if not any(module is layer for module in result.modules()):
        # Another model may hold the layer, too, and be materialized later.
        replaced = _Replaced(layer, result)
        vars(layer)[_ATTRIBUTE] = WaitingQuantizer(waiting.quantizer, replaced)


def _quantized(layer: torch.nn.Module, name: str, quantizer: Quantizer) -> torch.nn.Module:
    result: Any = quantizer(layer)
    if not isinstance(result, torch.nn.Module):
        raise TypeError(
            f"quantize: the function returned {type(result).__name__} for {name or 'the model'}; "
            "expected a module. Return the layer itself if it was changed in place."
        )
    return result


def _replace(layer: torch.nn.Module, result: torch.nn.Module, name: str, holders: _Holders) -> None:
    if result is layer:
        return
    places = _places(layer, holders)
    if not places:
        raise ValueError(
            f"quantize: the function returned another module for {name or 'the model itself'}, but "
            "the module that contains the layer was not given, so the layer cannot be replaced. "
            "Materialize the module that contains it, or change the layer in place."
        )
    for parent, key in places:
        parent._modules[key] = result


def _places(layer: torch.nn.Module, holders: _Holders) -> list[tuple[torch.nn.Module, str]]:
    """The `holders` that still hold `layer`."""
    return [
        (parent, key)
        for parent, key in holders.get(id(layer), ())
        if parent._modules.get(key) is layer
    ]


def _holders(roots: Roots) -> _Holders:
    """The modules under `roots` that hold a module, with its names in them, by its id."""
    holders: _Holders = {}
    parents = {
        id(parent): parent
        for _, root in roots
        if isinstance(root, torch.nn.Module)
        for parent in root.modules()
    }
    for parent in parents.values():
        # TorchScript keeps its modules in C++, and none of them waits.
        if isinstance(parent._modules, dict):
            for key, child in parent._modules.items():
                if child is not None:
                    holders.setdefault(id(child), []).append((parent, key))
    return holders


def _state_of(layer: torch.nn.Module) -> list[object]:
    """Equal as long as the tensors of `layer` are the same objects with the same values."""
    return [
        (id(tensor), tensor.dtype, tensor.device, 0 if tensor.is_inference() else tensor._version)
        for tensor in (*layer.parameters(), *layer.buffers())
    ]


# --- one thread at a time for each layer ---

_lock = threading.Lock()  # held to look a layer up, never while anything runs
_in_progress: dict[int, threading.Event] = {}  # by id of the layer that a thread works on
_of_this_thread = threading.local()

os.register_at_fork(after_in_child=_in_progress.clear)


@contextlib.contextmanager
def _claim(layer: torch.nn.Module) -> Iterator[bool]:
    """Makes this thread the one that quantizes `layer`; False if another thread has done it.

    If another thread has begun, this one waits for it, unless a quantizer called this function: two
    threads could then wait for each other.
    """
    done = _begin(layer)
    if done is None:
        yield False
        return
    _of_this_thread.depth = getattr(_of_this_thread, "depth", 0) + 1
    try:
        yield True
    finally:
        _of_this_thread.depth -= 1
        with _lock:
            del _in_progress[id(layer)]
        done.set()


def _begin(layer: torch.nn.Module) -> threading.Event | None:
    """The event to set when `layer` is done; None if there is nothing to do."""
    while True:
        with _lock:
            others = _in_progress.get(id(layer))
            if others is None:
                if _ATTRIBUTE not in vars(layer):
                    return None
                return _in_progress.setdefault(id(layer), threading.Event())
        if getattr(_of_this_thread, "depth", 0):
            return None
        others.wait()
