"""How a module becomes the layer of another library, or lets such a layer multiply for it."""

from __future__ import annotations

import functools
from typing import Any

import torch


def become(module: torch.nn.Module, layer: torch.nn.Module) -> None:
    """Makes `module` what `layer` is and keeps the object, with all that others know of it.

    Its class changes, and it gets every attribute of `layer` but the registered ones: parameters,
    buffers, submodules, and hooks that it has itself stay.
    """
    hooks: Any = layer._load_state_dict_pre_hooks
    for name, value in vars(layer).items():
        if name not in _OWN:
            module.__dict__[name] = value
    for hook in hooks.values():
        module._register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            hook.hook, with_module=hook.with_module
        )
    module.__class__ = type(layer)


# What torch.nn.Module.__init__ sets.
_OWN = frozenset(vars(torch.nn.Module()))


@functools.cache
def multiply_through(kind: Any) -> Any:
    """A class of quantised parameters that `torch.nn.functional.linear` multiplies by.

    For layers whose forward does more than to multiply, such as to communicate: they keep it, and
    where it calls `linear` with its weight, the library's own layer, which is the attribute `layer`
    of the parameter, does the work.

    Args:
        kind: the library's parameter class.

    Returns:
        A subclass of it.
    """

    class Multiplying(kind):  # type: ignore[misc]
        layer: torch.nn.Module

        @classmethod
        def __torch_function__(
            cls,
            func: Any,
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            kwargs = kwargs or {}
            if func is torch.nn.functional.linear:
                return _linear(*args, **kwargs)
            return super().__torch_function__(func, types, args, kwargs)

    Multiplying.__name__ = Multiplying.__qualname__ = kind.__name__
    return Multiplying


def is_foreign(parameter: torch.Tensor) -> bool:
    """Whether another layer multiplies by `parameter`."""
    return "layer" in vars(parameter)


def _linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    layer = weight.layer
    layer._parameters["bias"] = bias
    try:
        output: torch.Tensor = layer(input)
    finally:
        layer._parameters["bias"] = None
    return output
