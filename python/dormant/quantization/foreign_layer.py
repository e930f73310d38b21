"""Turns a module into the layer of another library, or makes such a layer multiply for it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch


def become(module: torch.nn.Module, layer: torch.nn.Module) -> None:
    """Turns `module` into what `layer` is; the object stays the same.

    Its class changes, and it gets every attribute of `layer` except the registered ones. It keeps
    its own parameters, buffers, submodules and hooks.
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
    """A class of quantized parameters that `torch.nn.functional.linear` multiplies with.

    It is for layers whose forward does more than multiply, such as communicate. They keep this
    forward. If it calls `linear` with its weight, the library's own layer does the work. This layer
    is the attribute `layer` of the parameter.

    Args:
        kind: the library's parameter class.

    Returns:
        A subclass of it.
    """

    class Multiplying(kind):  # type: ignore[misc]
        layer: Any

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            duplicate = super().__deepcopy__(memo)
            # Must precede the layer, which holds the parameter.
            memo[id(self)] = duplicate
            duplicate.layer = copy.deepcopy(self.layer, memo)
            if hasattr(duplicate, "quant_state"):
                duplicate.module = duplicate.layer
                duplicate.layer.quant_state = duplicate.quant_state
            return duplicate

        def __reduce_ex__(self, protocol: object) -> Any:
            raise NotImplementedError(
                "dormant: a quantized parallel layer cannot be pickled: the copy would not have "
                "the layer that computes with it. Save its state_dict, build the model again, "
                "quantize it and load that."
            )

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


def lend(module: torch.nn.Module, layer: Any) -> None:
    """Makes `layer` multiply for `module`, and save what it saves besides the weight.

    Args:
        module: its parameter `weight` has a class that `multiply_through` made.
        layer: the library's layer; its weight is the same parameter.
    """
    weight: Any = module._parameters["weight"]
    weight.layer = layer
    module.register_forward_pre_hook(_follow_mode)
    module._register_state_dict_hook(_add_state)  # type: ignore[no-untyped-call]


def _follow_mode(module: torch.nn.Module, _: object) -> None:
    # The layer is not a submodule, whose names would show, so `train` and `eval` do not reach it.
    weight: Any = module._parameters["weight"]
    weight.layer.training = module.training


def _add_state(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    weight: Any = module._parameters["weight"]
    if weight is None or not is_foreign(weight):  # it is exposed in full precision
        return
    saved: dict[str, Any] = {}
    weight.layer._save_to_state_dict(saved, prefix, False)
    # Save the weight, too: the layer may first restore it to the order of a checkpoint.
    state.update(saved)


def is_foreign(parameter: torch.Tensor) -> bool:
    """Whether another layer multiplies with `parameter`."""
    return "layer" in vars(parameter)


def _linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    layer = weight.layer
    layer._parameters["bias"] = bias
    try:
        output: torch.Tensor = layer(input)
    finally:
        layer._parameters["bias"] = None
    return output
