"""Layers that another library, or the user's function, quantizes one at a time.

Such a quantizer needs a whole layer in full precision. `dormant.quantize` only notes which layers
are meant; `materialize` and `load` bring one of them to life, hand it over, put the result in its
place and drop the original before the next. So the peak is the final model and one layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

Quantizer = Callable[[torch.nn.Module], torch.nn.Module]
Realize = Callable[[torch.nn.Module, str], None]


@dataclass
class _Pending:
    """What is to be done with a layer.

    Attributes:
        name: its name in the model that was quantized, for messages.
        quantizer: maps it to the quantized one.
        places: the modules that hold it, each with its name there.
    """

    name: str
    quantizer: Quantizer
    places: list[tuple[weakref.ref[torch.nn.Module], str]] = field(default_factory=list)


_pending: weakref.WeakKeyDictionary[torch.nn.Module, _Pending] = weakref.WeakKeyDictionary()


def postpone(
    model: torch.nn.Module, layers: Iterable[tuple[str, torch.nn.Module]], quantizer: Quantizer
) -> None:
    """Notes that the named `layers` of `model` go through `quantizer` when they come to life."""
    places = _places(model)
    for name, layer in layers:
        _pending[layer] = _Pending(name, quantizer, places.get(id(layer), []))


def quantize_now(
    model: torch.nn.Module, layers: Iterable[tuple[str, torch.nn.Module]], quantizer: Quantizer
) -> None:
    """Puts real `layers` of `model` through `quantizer`, one after the other."""
    places = _places(model)
    for name, layer in layers:
        _quantize(layer, _Pending(name, quantizer, places.get(id(layer), [])))


def pending_layers(model: object) -> list[tuple[str, torch.nn.Module]]:
    """The layers in `model` that are still to be quantized, by name; none of what is no module."""
    if not _pending or not isinstance(model, torch.nn.Module):
        return []
    return [(name, module) for name, module in model.named_modules() if module in _pending]


def finish_layerwise(model: object, realize: Realize) -> list[str]:
    """Quantizes the postponed layers of `model`, one at a time.

    Args:
        model: a module; anything else has none.
        realize: brings all tensors of one layer to life; gets the layer and its name.

    Returns:
        The names of the layers, in the order in which it was done.

    Raises:
        TypeError: a quantizer returned no module. That layer is real and unquantized, the ones
            before it are quantized, the others are as they were; it can be called again.
        Exception: whatever a quantizer raises, with the same effect.
    """
    finished: list[str] = []
    waiting = pending_layers(model)[::-1]
    # Popped, so that nothing here keeps a layer alive when another has taken its place.
    while waiting:
        name, layer = waiting.pop()
        realize(layer, name)
        _quantize(layer, _pending[layer])
        del _pending[layer]
        finished.append(name)
    return finished


def _quantize(layer: torch.nn.Module, pending: _Pending) -> None:
    result: Any = pending.quantizer(layer)
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
            "quantize the module that contains it."
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
