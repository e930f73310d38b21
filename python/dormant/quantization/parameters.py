"""Parameters outside of linear layers: which are quantized, and which keep their precision."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from dormant.quantization.four_bit_parameter import parametrization_of
from dormant.quantization.layers import quantized_weights
from dormant.quantization.skipping import is_skipped, proposal
from dormant.tensors.identity import identity, is_wrapper
from dormant.tensors.inventory import element_bytes

# What transformers' `use_experts_implementation` sets on each module of experts
# (transformers/integrations/moe.py), and the parameters that its functions multiply by.
_INTERFACE = ("has_gate", "is_transposed", "is_concatenated")
EXPERT_PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")

_LARGE = 1 << 20


@dataclass(frozen=True)
class ModuleParameter:
    """A parameter and the module that has it.

    Attributes:
        name: its name in the model.
        module: the module that registered it.
        attribute: its name in this module.
    """

    name: str
    module: torch.nn.Module
    attribute: str

    @property
    def weight(self) -> torch.nn.Parameter:
        """The parameter as the module holds it."""
        weight = self.module._parameters[self.attribute]
        assert weight is not None
        return weight


def expert_parameters(model: torch.nn.Module) -> dict[str, ModuleParameter]:
    """The stacked matrices of experts that transformers' interface for experts multiplies with.

    The interface sets attributes on the modules that it knows. Older modules of the same form,
    which do not use the interface, have both `gate_up_proj` and `down_proj`, with three dimensions
    and the same number of experts.
    """
    found: dict[str, ModuleParameter] = {}
    for each in module_parameters(model):
        if each.attribute in EXPERT_PARAMETERS and _is_stack(each) and _has_experts(each.module):
            found[each.name] = each
    return found


def _has_experts(module: torch.nn.Module) -> bool:
    if all(name in vars(module) for name in _INTERFACE):
        return True
    shapes = [_shape(module, name) for name in ("gate_up_proj", "down_proj")]
    return all(len(shape) == 3 for shape in shapes) and shapes[0][0] == shapes[1][0]


def _shape(module: torch.nn.Module, name: str) -> torch.Size:
    """The shape of a parameter, also if it has been packed; empty if there is none."""
    parameter = module._parameters.get(name)
    if parameter is not None:
        return parameter.shape
    unpacks = parametrization_of(module, name)
    return torch.Size(()) if unpacks is None else torch.Size(unpacks.quant_state.shape)


def _is_stack(parameter: ModuleParameter) -> bool:
    weight = parameter.weight
    return (not is_wrapper(weight) or hasattr(weight, "_spec")) and weight.dim() == 3


def named_by(
    model: torch.nn.Module, patterns: Sequence[str], layers: Collection[torch.nn.Module]
) -> dict[str, ModuleParameter]:
    """The parameters that the caller's patterns name, except the weights of `layers`.

    As in peft's `target_parameters`, a pattern is a whole name, the parts with which it ends
    ("experts.gate_up_proj"), or a regular expression for these.

    Raises:
        ValueError: a pattern matches no parameter; the message proposes similar names.
    """
    found: dict[str, ModuleParameter] = {}
    matched: set[str] = set()
    everything = list(module_parameters(model))
    for each in everything:
        for pattern in patterns:
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", each.name):
                matched.add(pattern)
                if not (each.module in layers and each.attribute == "weight"):
                    found[each.name] = each
    unknown = [pattern for pattern in patterns if pattern not in matched]
    if unknown:
        names = [each.name for each in everything]
        raise ValueError(
            "quantize: parameters matches no parameter of the model: "
            + "; ".join(f"{pattern!r}{proposal(pattern, names)}" for pattern in unknown)
            + ". Nothing was changed. Names are matched from any of their parts to the end."
        )
    return found


def looks_stacked(model: torch.nn.Module) -> dict[str, ModuleParameter]:
    """Parameters that may hold the stacked matrices of several experts.

    They have three dimensions, and "expert" in their name, or in the name of an attribute of their
    module that is the number of experts. Layers of PyTorch (`Conv1d`, `Bilinear`) are excluded.
    """
    found: dict[str, ModuleParameter] = {}
    for each in module_parameters(model):
        if isinstance(each.module, (torch.nn.modules.conv._ConvNd, torch.nn.Bilinear)):
            continue
        counts = {
            value
            for name, value in list(vars(each.module).items())
            if type(value) is int and "expert" in name
        }
        weight = each.weight
        if (
            not is_wrapper(weight)
            and weight.dim() == 3
            and ("expert" in each.name.lower() or weight.size(0) in counts)
            and min(weight.shape) > 1
        ):
            found[each.name] = each
    return found


def large_parameters(model: torch.nn.Module, known: Collection[str]) -> dict[str, str]:
    """Why parameters of more than 1 MiB keep their precision, by name.

    Args:
        model: the model.
        known: names of parameters and layers that are quantized, or whose reason is known already.
    """
    held = {weight.held_as for weight in quantized_weights(model)}
    return {
        each.name: _why_kept(each)
        for each in module_parameters(model)
        if each.name not in known
        and each.name.removesuffix(".weight") not in known
        and each.name not in held
        and element_bytes(each.weight) > _LARGE
    }


def _why_kept(parameter: ModuleParameter) -> str:
    module, kind = parameter.module, type(parameter.module).__name__
    if not parameter.weight.is_floating_point() or is_wrapper(parameter.weight):
        return f"it is quantized already, or not floating-point: {parameter.weight.dtype}"
    if isinstance(module, torch.nn.Linear):
        return f"its class {kind} is not exactly torch.nn.Linear and may compute something else"
    if isinstance(module, torch.nn.Embedding):
        return "it is a lookup table; an Embedding keeps its precision"
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return f"no scheme has a {kind}"
    return (
        f"a parameter of {kind}, which is not a linear layer; name it in parameters= to quantize it"
    )


def parameter_nbytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters; each is counted once."""
    seen = {identity(each.weight): element_bytes(each.weight) for each in module_parameters(model)}
    return sum(seen.values())


def module_parameters(model: torch.nn.Module) -> Iterator[ModuleParameter]:
    """All parameters that have a known size, each with the first module that has it."""
    for prefix, module in model.named_modules():
        registry: Mapping[str, torch.nn.Parameter | None] = module._parameters
        if not isinstance(registry, dict):  # a TorchScript module keeps its parameters in C++
            continue
        for attribute, parameter in registry.items():
            if parameter is not None and not torch.nn.parameter.is_lazy(parameter):
                yield ModuleParameter(
                    f"{prefix}.{attribute}" if prefix else attribute, module, attribute
                )


def why_skipped(name: str, patterns: Mapping[str, str]) -> str | None:
    """The reason why `patterns` skip a parameter or its module; None if they do not."""
    pattern = is_skipped(name.rpartition(".")[0], patterns) or is_skipped(name, patterns)
    return None if pattern is None else patterns[pattern]
