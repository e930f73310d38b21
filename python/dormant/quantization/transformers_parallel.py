"""Quantized models in transformers' tensor and expert parallelism (`DistributedConfig`).

The library divides parameters by name and shape (transformers/distributed). A packed stack of
experts is not among the parameters of its module, and a packed matrix has another shape. Here, a
parameter on the meta device stands in for each stack while the library reads names and divides;
what the library has done to it is then done to the packed bytes, where blocks end. Layers compute
with their part as a local tensor, as the library's other quantized layers do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from dormant._extension import _C
from dormant.quantization.four_bit_parameter import FourBitParameter, parametrization_of
from dormant.quantization.layers import QuantizedWeight, quantized_weights, set_format
from dormant.quantization.tensor_parallel import (
    DividedFourBit,
    check_layer,
    dividing,
    is_packed,
    text_of_whole,
)
from dormant.recording.patches import Function, Patch, declare
from dormant.tensors.division import Division, divisions_of, set_division
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import unrecorded

_TENSORS, _EXPERTS = "tensor parallelism", "expert parallelism"


@contextlib.contextmanager
def _standing_in(stacks: list[QuantizedWeight]) -> Iterator[None]:
    """While open, plain parameters stand in for packed ones, which are then divided as these are.

    After an exception, the packed parameters are as before.
    """
    with contextlib.ExitStack() as stack:
        for weight in stacks:
            with unrecorded(), torch.device("meta"):
                empty = torch.empty(weight.shape, dtype=weight.source.dtype)
            plain = torch.nn.Parameter(empty, requires_grad=False)
            stack.enter_context(weight.format.showing(weight.module, plain))
        yield
        shown: list[Any] = [weight.module._parameters[weight.attribute] for weight in stacks]
    for weight, parameter in zip(stacks, shown, strict=True):
        if is_dtensor(parameter):
            _divide(weight, parameter.device_mesh)


def _stacks(model: torch.nn.Module) -> list[QuantizedWeight]:
    """The packed parameters that are not the weights of layers."""
    return [
        weight
        for weight in quantized_weights(model)
        if isinstance(weight.format, FourBitParameter) and weight.held is not None
    ]


def _check_stack(weight: QuantizedWeight, size: int) -> None:
    """Raises ValueError if the experts cannot be divided among `size` ranks."""
    if weight.format.held_as in divisions_of(weight.module):
        raise ValueError(f"{_EXPERTS}: {weight.name} is quantized and has been divided before.")
    scheme, operation = weight.format.scheme, f"{_EXPERTS}, {weight.name}"  # type: ignore[attr-defined]
    DividedFourBit.check_division(scheme, weight.shape, 0, size, operation=operation)


def _divide(weight: QuantizedWeight, mesh: Any) -> None:
    """Leaves the packed experts of this rank, and the state for them."""
    module, whole = weight.module, weight.format
    assert isinstance(whole, FourBitParameter)
    division = Division(mesh, 0, weight.shape[0])
    scheme = DividedFourBit(**vars(whole.scheme), division=division)
    part = FourBitParameter(scheme, whole.attribute)
    part.exchange(module, scheme.cut)
    if not divisions_of(module):
        module.register_state_dict_post_hook(_save_whole)  # type: ignore[no-untyped-call]
    set_division(module, part.held_as, division)
    set_format(module, part)


def _save_whole(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Makes DTensors of the parts in a state dict, and the text of the state that of the whole."""
    for held_as, division in divisions_of(module).items():
        attribute = held_as.split(".")[1]
        unpacks = parametrization_of(module, attribute)
        if unpacks is None:  # a plain parameter is shown in its place
            continue
        name = prefix + attribute
        for each in (name, f"{name}.absmax", f"{name}.nested_absmax"):
            if each in state:
                state[each] = division.whole(state[each].detach())
        state.update(text_of_whole(unpacks.quant_state, division, name))


def _listing_packed(original: Function) -> Function:
    """`_resolve_parallel_plans`: finds the rules for packed parameters, and checks them all."""

    @functools.wraps(original)
    def replacement(self: Any, distributed_config: Any) -> Any:
        stacks = _stacks(self)
        with _standing_in(stacks):
            plans = original(self, distributed_config)
        weights = quantized_weights(self)
        if weights:
            tensors, experts, _ = plans
            for weight in weights:
                if weight.name in experts and isinstance(weight.format, FourBitParameter):
                    _check_stack(weight, distributed_config.ep_size)
                elif weight.name in tensors:
                    _check_rule(weight, tensors[weight.name], distributed_config.tp_size)
        return plans

    return replacement


def _check_rule(weight: QuantizedWeight, rule: str, size: int) -> None:
    if isinstance(weight.format, FourBitParameter):
        raise NotImplementedError(
            f"{_TENSORS}: {weight.name}, {' x '.join(map(str, weight.shape))}, was quantized by "
            f"{weight.format}; packed experts can be divided by experts only, and the rule "
            f"{rule!r} divides each of them. Use DistributedConfig(tp_size={size}, ep_size={size}),"
            " or skip the experts in dormant.quantize."
        )
    library = importlib.import_module("transformers.distributed.tensor_parallel")
    style = library.ALL_PARALLEL_STYLES[rule]
    for kind, dim in ((library.ColwiseParallel, 0), (library.RowwiseParallel, 1)):
        if isinstance(style, kind) and is_packed(weight.module):
            check_layer(weight.module, dim, size, operation=f"{_TENSORS}, {weight.name}")


def _dividing_stacks(original: Function) -> Function:
    """`apply_expert_parallelism`."""

    @functools.wraps(original)
    def replacement(model: Any, ep_mesh: Any, tp_mesh: Any, plan: Any, *rest: Any) -> Any:
        stacks = [weight for weight in _stacks(model) if weight.name in plan]
        for weight in stacks:
            _check_stack(weight, ep_mesh.size())
        with _standing_in(stacks):
            return original(model, ep_mesh, tp_mesh, plan, *rest)

    return replacement


def _untying(original: Function) -> Function:
    """`maybe_distribute_model`: the library calls it before it ties weights, and looks up names."""

    @functools.wraps(original)
    def replacement(cls: Any, model: Any, distributed_config: Any, mesh_manager: Any) -> Any:
        tied = [] if mesh_manager is None else list(_lazy_ties(model))
        for module, attribute, parameter in tied:
            own = torch.nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            module._parameters[attribute] = own
        try:
            result = original(cls, model, distributed_config, mesh_manager)
        except BaseException:
            for module, attribute, parameter in tied:
                module._parameters[attribute] = parameter
            raise
        if tied:
            result.tie_weights(recompute_mapping=False)
        return result

    return replacement


def _lazy_ties(model: Any) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """The parameters that are the same objects as others, with the modules that have them."""
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = module._parameters.get(attribute)
        is_tied = parameter is not None and parameter is model.get_parameter(source)
        if is_tied and _C.is_lazy(parameter):
            yield module, attribute, parameter


def _dividing_a_layer(dim: int, original: Function) -> Function:
    """`shard_param` of ColwiseParallel and RowwiseParallel."""

    @functools.wraps(original)
    def replacement(self: Any, module: torch.nn.Module, param: str, mesh: Any) -> None:
        if param != "weight" or not is_packed(module):
            original(self, module, param, mesh)
            return
        with dividing(module, mesh, dim, operation=_TENSORS):
            pass
        # The hooks of the library then give the layer local tensors, and reduce what it returns.
        vars(module)["_hf_quantized_needs_local_tp"] = True

    return replacement


_LIBRARY = "transformers.distributed"
_REASON = "divides packed weights where blocks end"
declare(
    Patch(
        f"{_LIBRARY}.mixin:DistributedMixin",
        "_resolve_parallel_plans",
        "looks for parameters by name, and packed ones have others",
        _listing_packed,
    ),
    Patch(
        f"{_LIBRARY}.mixin:DistributedMixin",
        "maybe_distribute_model",
        "divides each tied weight separately, before it ties them",
        _untying,
    ),
    Patch(
        f"{_LIBRARY}.expert_parallel",
        "apply_expert_parallelism",
        _REASON,
        _dividing_stacks,
    ),
    *(
        Patch(
            f"{_LIBRARY}.tensor_parallel:{style}",
            "shard_param",
            _REASON,
            functools.partial(_dividing_a_layer, dim),
        )
        for style, dim in (("ColwiseParallel", 0), ("RowwiseParallel", 1))
    ),
)
