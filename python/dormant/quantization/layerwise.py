"""Layers that another library, or the user's function, quantises one at a time.

Such a quantiser needs a whole layer in full precision. `dormant.quantize` only notes which layers
are meant; `materialize` and `load` bring one of them to life, hand it over, put the result in its
place and drop the original before the next. So the peak is the final model and one layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

Quantiser = Callable[[torch.nn.Module], torch.nn.Module]
Realize = Callable[[torch.nn.Module, str], None]


@dataclass
class _Pending:
    """What is to be done with a layer.

    Attributes:
        name: its name in the model that was quantised, for messages.
        quantiser: maps it to the quantised one.
        places: the modules that hold it, each with its name there.
    """

    name: str
    quantiser: Quantiser
    places: list[tuple[weakref.ref[torch.nn.Module], str]] = field(default_factory=list)


_pending: weakref.WeakKeyDictionary[torch.nn.Module, _Pending] = weakref.WeakKeyDictionary()


def postpone(
    model: torch.nn.Module, layers: Iterable[tuple[str, torch.nn.Module]], quantiser: Quantiser
) -> None:
    """Notes that the named `layers` of `model` go through `quantiser` when they come to life."""
    places = _places(model)
    for name, layer in layers:
        _pending[layer] = _Pending(name, quantiser, places.get(id(layer), []))


def quantise_now(
    model: torch.nn.Module, layers: Iterable[tuple[str, torch.nn.Module]], quantiser: Quantiser
) -> None:
    """Puts real `layers` of `model` through `quantiser`, one after the other."""
    places = _places(model)
    for name, layer in layers:
        _quantise(layer, _Pending(name, quantiser, places.get(id(layer), [])))


def pending_layers(model: object) -> list[tuple[str, torch.nn.Module]]:
    """The layers in `model` that are still to be quantised, by name; none of what is no module."""
    if not _pending or not isinstance(model, torch.nn.Module):
        return []
    return [(name, module) for name, module in model.named_modules() if module in _pending]


def finish_layerwise(model: object, realize: Realize) -> list[str]:
    """Quantises the postponed layers of `model`, one at a time.

    Args:
        model: a module; anything else has none.
        realize: brings all tensors of one layer to life; gets the layer and its name.

    Returns:
        The names of the layers, in the order in which it was done.

    Raises:
        TypeError: a quantiser returned no module. That layer is real and unquantised, the ones
            before it are quantised, the others are as they were; it can be called again.
        Exception: whatever a quantiser raises, with the same effect.
    """
    finished: list[str] = []
    waiting = pending_layers(model)[::-1]
    # Popped, so that nothing here keeps a layer alive when another has taken its place.
    while waiting:
        name, layer = waiting.pop()
        realize(layer, name)
        _quantise(layer, _pending[layer])
        del _pending[layer]
        finished.append(name)
    return finished


def _quantise(layer: torch.nn.Module, pending: _Pending) -> None:
    result: Any = pending.quantiser(layer)
    if not isinstance(result, torch.nn.Module):
        raise TypeError(
            f"quantize: the function returned {type(result).__name__} for {pending.name}; expected "
            "a module, the layer itself where it changed that in place."
        )
    if result is layer:
        return
    holders = [(parent, name) for place, name in pending.places if (parent := place())]
    if not holders:
        raise ValueError(
            f"quantize: {pending.name or 'the model itself'} was replaced by another module, but "
            "no module holds it in which the other could take its place. Change it in place, or "
            "quantise the module that contains it."
        )
    for parent, name in holders:
        parent._modules[name] = result


def _places(model: torch.nn.Module) -> dict[int, list[tuple[weakref.ref[torch.nn.Module], str]]]:
    places: dict[int, list[tuple[weakref.ref[torch.nn.Module], str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((weakref.ref(parent), name))
    return places
