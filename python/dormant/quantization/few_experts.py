"""Lets modules of experts that are packed in 4 bits unpack only the experts that they need.

The parametrization of bitsandbytes unpacks all experts of a layer in every forward. The functions
here are registered with transformers' interface for experts (transformers/integrations/moe.py). If
only a few experts are needed, they unpack these, and call the function that the model had before
with a module of these few experts. It multiplies the same numbers in the same order, so the result
is the same, whichever function it is. If most experts are needed, as for a long prompt, all are
unpacked at once.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Collection
from typing import Any

import torch

from dormant._extension import _C
from dormant.quantization import pretrained
from dormant.quantization.bitsandbytes import library
from dormant.quantization.four_bit_parameter import parametrization_of
from dormant.quantization.parameters import EXPERT_PARAMETERS
from dormant.tensors.pretrained import is_pretrained

_PREFIX = "dormant_"
# Selecting experts takes as long as unpacking this many elements (bitsandbytes 0.50, one thread).
_ELEMENTS_OF_CHOICE = 1 << 19
_INDEXED = frozenset(name + end for name in EXPERT_PARAMETERS for end in ("", "_bias"))

Function = Callable[..., torch.Tensor]


def use_for(model: torch.nn.Module, modules: Collection[torch.nn.Module]) -> None:
    """Makes `modules` of `model` compute with few experts, if the interface knows them.

    Their configuration gets the name of a function that calls the one that it names now.
    """
    interface: Any = sys.modules.get("transformers.integrations.moe")
    functions = getattr(interface, "ALL_EXPERTS_FUNCTIONS", None)
    known = [module for module in modules if _configuration_of(module) is not None]
    if functions is None or not known:
        return
    _take_configurations(model, known)
    for configuration in {id(each): each for each in map(_configuration_of, known)}.values():
        name: str = configuration._experts_implementation
        if name is None or name.startswith(_PREFIX):
            continue
        if _PREFIX + name not in functions:
            functions.register(_PREFIX + name, functools.partial(experts_forward, name))
        # `set_experts_implementation` does the same for one configuration of several.
        configuration._experts_implementation_internal = _PREFIX + name


def _configuration_of(module: torch.nn.Module) -> Any:
    configuration = vars(module).get("config")
    interface = hasattr(module, "_is_expert_parallel") and hasattr(
        configuration, "_experts_implementation_internal"
    )
    return configuration if interface else None


def _take_configurations(model: torch.nn.Module, modules: Collection[torch.nn.Module]) -> None:
    """Copies the configurations of `modules`, because other models may use them."""
    if is_pretrained(model):  # `mark` has copied it
        return
    left = set(modules)
    for part in model.modules():
        if is_pretrained(part) and not left.isdisjoint(part.modules()):
            pretrained.take_own_configuration(part)
            left.difference_update(part.modules())
    for module in left:
        alone: Any = module
        alone.config = copy.copy(alone.config)


def experts_forward(
    name: str,
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The experts function `name` of the interface, called with the experts that are needed.

    Args:
        name: the name of the function: "eager", "grouped_mm", ...
        module: the module of experts.
        hidden_states: [tokens, hidden].
        top_k_index: [tokens, k], the experts of each token.
        top_k_weights: [tokens, k].

    Returns:
        [tokens, hidden].
    """
    forward = _function(name, module)
    if (
        not torch.compiler.is_compiling()
        # With more choices, almost all experts are needed, and `unique` would be wasted time.
        and top_k_index.numel() < 4 * module.num_experts
        and _can_take_few(module)
    ):
        experts, index = torch.unique(top_k_index, return_inverse=True)
        if _saves_time(module, len(experts)):
            few: Any = _FewExperts(module, experts)
            return forward(few, hidden_states, index, top_k_weights)
    return forward(module, hidden_states, top_k_index, top_k_weights)


def _function(name: str, module: torch.nn.Module) -> Function:
    interface: Any = sys.modules["transformers.integrations.moe"]
    # `use_experts_implementation` wraps the forward of the class.
    own: Function = type(module).forward.__wrapped__  # type: ignore[attr-defined]
    function: Function = interface.ALL_EXPERTS_FUNCTIONS.get_interface(name, own)
    return function


def _can_take_few(module: Any) -> bool:
    """Whether everything that depends on the experts is known and can be unpacked separately."""
    if module._is_expert_parallel or module._buffers or not _INDEXED.issuperset(module._parameters):
        return False
    packed = module._modules.get("parametrizations", {})
    if not _INDEXED.issuperset(packed):
        return False
    return all(_has_whole_blocks(module, name) for name in packed)


def _saves_time(module: Any, wanted: int) -> bool:
    """Whether unpacking `wanted` experts takes less time than unpacking all.

    Their packed rows are copied first. This takes up to a quarter of the time of unpacking them.
    """
    unused = module.num_experts - wanted
    if unused * 4 < module.num_experts:
        return False
    packed = module._modules.get("parametrizations", {}).values()
    elements = sum(torch.Size(each[0].quant_state.shape).numel() for each in packed)
    return bool(elements // module.num_experts * unused > _ELEMENTS_OF_CHOICE)


def _has_whole_blocks(module: Any, name: str) -> bool:
    unpacks = parametrization_of(module, name)
    if unpacks is None:
        return False
    state, packed = unpacks.quant_state, module.parametrizations[name].original
    return bool(
        state.shape[0] == module.num_experts
        # Select whole rows, not only experts: on a CPU, bitsandbytes 0.50 unpacks other rows with
        # scales that depend on what precedes them.
        and state.shape[-1] % state.blocksize == 0
        and packed.dtype is torch.uint8
        and packed.numel() * 2 == torch.Size(state.shape).numel()
        # A lazy one is materialized by the code that unpacks all of it.
        and not _C.is_lazy(packed)
    )


class _FewExperts:
    """A module of experts with only some of them."""

    def __init__(self, module: Any, experts: torch.Tensor) -> None:
        vars(self)["_module"] = module
        vars(self)["num_experts"] = len(experts)
        for name, parameter in module._parameters.items():
            vars(self)[name] = None if parameter is None else parameter[experts]
        for name, packed in module._modules.get("parametrizations", {}).items():
            vars(self)[name] = _unpacked(packed.original, packed[0].quant_state, experts)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


@torch.no_grad()
def _unpacked(packed: torch.Tensor, state: Any, experts: torch.Tensor) -> torch.Tensor:
    """`experts` of what bitsandbytes would unpack whole, with the same bits."""
    functional = library().functional
    shape = torch.Size([len(experts), *state.shape[1:]])
    few = functional.QuantState(
        absmax=_absmax(state, experts),
        shape=shape,
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
    rows = _rows(packed, state, experts)
    unpacked: torch.Tensor = functional.dequantize_4bit(rows.view(-1, 1), few)
    return unpacked


def _absmax(state: Any, experts: torch.Tensor) -> torch.Tensor:
    scales = _rows(state.absmax, state, experts)
    if not state.nested:
        return scales.view(-1)
    nested, count = state.state2, scales.shape[1]
    absmax: torch.Tensor
    if count % nested.blocksize == 0:
        few = library().functional.QuantState(
            absmax=_rows(nested.absmax, state, experts).view(-1),
            code=nested.code,
            blocksize=nested.blocksize,
            dtype=nested.dtype,
        )
        absmax = library().functional.dequantize_blockwise(scales.view(-1), few)
    else:  # a block may begin in one expert and end in the next one
        blocks = torch.arange(count, device=experts.device) + experts[:, None] * count
        absmax = nested.code[scales.int()] * nested.absmax[blocks // nested.blocksize]
    absmax = absmax + state.offset
    return absmax.view(-1)


def _rows(tensor: torch.Tensor, state: Any, experts: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` that belongs to `experts`."""
    # This copies whole rows; an index would gather them element by element.
    rows: torch.Tensor = tensor.view(state.shape[0], -1).index_select(0, experts)
    return rows
