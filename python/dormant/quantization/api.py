"""`quantize`: turns linear layers and stacked experts into quantized ones before weights exist."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch.nn.parameter import is_lazy as is_uninitialized

from dormant._extension import _C
from dormant.quantization import (
    bitsandbytes,
    few_experts,
    layerwise,
    pretrained,
    tensor_parallel,  # noqa: F401 (declares its patches)
    torchao,
)
from dormant.quantization.four_bit import FourBit
from dormant.quantization.four_bit_parameter import FourBitParameter
from dormant.quantization.int8 import Int8
from dormant.quantization.layers import quantized_weights, register
from dormant.quantization.linear_layers import LinearLayer, linear_kind
from dormant.quantization.optimizers import check_no_optimizer_holds
from dormant.quantization.parameters import (
    ModuleParameter,
    expert_parameters,
    large_parameters,
    looks_stacked,
    named_by,
    parameter_nbytes,
    why_skipped,
)
from dormant.quantization.report import QuantizedLayer, QuantizeReport
from dormant.quantization.skipping import (
    ADAPTERS,
    check_all_match,
    checked,
    default_patterns,
    is_skipped,
    kept_by_configuration,
    tied_names,
)
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.identity import is_wrapper, owns_storage
from dormant.tensors.inventory import own_parameter
from dormant.tensors.pretrained import is_pretrained

Scheme: TypeAlias = (
    'Literal["nf4", "fp4", "int8"] | FourBit | Int8 | Callable[[torch.nn.Module], torch.nn.Module]'
    " | Any"
)


def quantize(
    model: torch.nn.Module,
    scheme: Scheme,
    *,
    skip: Iterable[str] | None = None,
    parameters: Iterable[str] | None = None,
) -> QuantizeReport:
    """Turns the linear layers and experts of a lazy model into quantized ones.

    With the formats of bitsandbytes, the packed bytes and the statistics are lazy tensors that are
    computed from the history of the weight when they are materialized: from its initialization, or
    from what `dormant.load` reads. `materialize` and `load` stream it through the quantizer in
    small tiles. The full-precision weight never exists, and the result is bit for bit what
    bitsandbytes makes from the eager weight. The modules stay the same objects and become
    `bitsandbytes.nn.Linear4bit` or `Linear8bitLt`. Their biases, hooks and all other attributes
    also stay the same objects.

    Configuration objects of torchao and functions need a whole layer. `materialize` and `load` make
    one layer after the other real, pass it to the quantizer, and replace it by the result. Until
    then, the function is attached to its layer, and moves with it into other containers, wrappers,
    deep copies and pickles.

    These modules are quantized: modules whose class is exactly `torch.nn.Linear`, transformers'
    `Conv1D`, and column and row parallel layers, which are recognized by the attributes that they
    have in fairscale and Megatron (`gather_output` and `output_size_per_partition`,
    `input_is_parallel` and `input_size_per_partition`). Parallel layers keep their class and
    forward, which must call `torch.nn.functional.linear` with the weight. Layers that are already
    real are quantized at once.

    The 4-bit formats also take parameters that stack the matrices of experts, as the mixtures of
    experts in transformers keep them, and any other parameter that `parameters` names. They are
    packed as by `bitsandbytes.nn.parametrize.replace_parameter_4bit`, with its names in the state
    dict. Modules that transformers' interface for experts knows then unpack only the experts that
    their input is routed to.

    Args:
        model: the model, lazy or not; inside `dormant.lazy_init` or outside.
        scheme: "nf4" and "fp4" (as `FourBit(kind=...)`), "int8" (as `Int8()`), a `FourBit` or
            `Int8` with options, a transformers `BitsAndBytesConfig` or `TorchAoConfig`, a
            configuration object of torchao, or a function or class that is called with a layer and
            returns the module that replaces it.
        skip: names of the modules that keep their precision. Each is a regular expression for the
            first parts of the name, or text with which the name ends, as in transformers'
            `llm_int8_skip_modules`. They replace the default: names with "lora" in them, tied
            weights, and in transformers models what transformers skips, such as the output head. In
            other models, Dormant does not know which layer is the head: name it.
        parameters: the parameters that are quantized besides linear layers, as in peft's
            `target_parameters`: names of parameters, the parts with which they end
            ("experts.down_proj"), or regular expressions for these. They replace the default, the
            stacked experts of transformers' interface.

    Returns:
        The layers and parameters that are quantized, and what was skipped and why.

    Raises:
        ImportError: the library that the scheme needs is not installed.
        NotImplementedError: a weight is a DTensor, as after `fully_shard`, or not on the CPU; or
            `parameters` are named for a scheme that has no format for them.
        TypeError: `model` is not a module, `scheme` is not one of the above, or `skip` or
            `parameters` is not a list of names.
        ValueError: the name of the scheme is unknown; an entry of `skip` or `parameters` matches
            nothing or is not a regular expression; nothing in the model can be quantized; a weight
            cannot be quantized (it is tied to another one, is not a floating-point tensor, or is on
            the meta device); or an optimizer holds it. The model is then unchanged.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init():
        ...     model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
        >>> def halve(layer):
        ...     return layer.to(torch.bfloat16)
        >>> report = dormant.quantize(model, halve, skip=["1"])
        >>> [layer.name for layer in report.layers], list(report.skipped)
        (['0'], ['1'])
        >>> report = dormant.materialize(model)
        >>> model[0].weight.dtype, model[1].weight.dtype
        (torch.bfloat16, torch.float32)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"quantize: expected a module, got {type(model).__name__}.")
    resolved, configured_skip = _resolve(scheme)
    chosen_skip = None if skip is None else checked(skip, "skip")
    patterns = _patterns(model, chosen_skip, configured_skip)
    if chosen_skip:
        check_all_match(model, chosen_skip)
    named = None if parameters is None else checked(parameters, "parameters")
    if isinstance(resolved, torchao.TorchaoByName):
        if named is not None:
            raise ValueError(
                "quantize: an FqnToConfig names what it quantizes; leave parameters out."
            )
        explicit = patterns if skip is not None or configured_skip else {}
        return _by_name(model, resolved, explicit)
    layers, skipped = _choose(model, patterns)
    chosen, kept = _choose_parameters(model, resolved, patterns, named, skip is not None, layers)
    if not layers and not chosen:
        raise ValueError(_nothing(model, skipped | kept))
    _check_weights(model, layers, chosen)
    total = parameter_nbytes(model)
    kept |= large_parameters(model, {*layers, *chosen, *skipped, *kept})
    if isinstance(resolved, (FourBit, Int8)):
        done, words = _fused(model, resolved, layers, skipped, chosen, chosen_skip, configured_skip)
    else:
        done, words = _layer_by_layer(model, scheme, resolved, layers, skipped)
    return QuantizeReport(words, done, skipped | kept, total)


def _resolve(
    scheme: Scheme,
) -> tuple[FourBit | Int8 | layerwise.Quantizer | torchao.TorchaoByName, list[str] | None]:
    """The format or function that `scheme` stands for, and the modules that it asks to skip."""
    if isinstance(scheme, str):
        if scheme not in ("nf4", "fp4", "int8"):
            raise ValueError(
                f'quantize: unknown scheme {scheme!r}; expected "nf4", "fp4" or "int8", a '
                "configuration object, or a function from layer to layer."
            )
        bitsandbytes.library()
        if scheme == "int8":
            return Int8(), None
        return FourBit(kind="nf4" if scheme == "nf4" else "fp4"), None
    if isinstance(scheme, (FourBit, Int8)):
        bitsandbytes.library()
        return scheme, None
    configuration: Any = scheme
    if _is_a(scheme, "BitsAndBytesConfig"):
        bitsandbytes.library()
        resolved = pretrained.from_configuration(configuration)
        return resolved, configuration.llm_int8_skip_modules
    if _is_a(scheme, "TorchAoConfig"):
        quantizer = torchao.layer_quantizer(configuration.quant_type)
        return quantizer, configuration.modules_to_not_convert
    if torchao.is_configuration(scheme):
        return torchao.layer_quantizer(scheme), None
    if callable(scheme) and not _is_class_of_configurations(scheme) and _takes_a_layer(scheme):
        return scheme, None
    raise TypeError(
        'quantize: scheme must be "nf4", "fp4", "int8", dormant.FourBit, dormant.Int8, a '
        "BitsAndBytesConfig, a configuration object of torchao, or a function or class that is "
        f"called with a layer and gives a module; got {scheme!r}."
    )


def _is_a(scheme: object, name: str) -> bool:
    """Whether the class of `scheme`, or one of its base classes, has this name; imports nothing."""
    return any(kind.__name__ == name for kind in type(scheme).__mro__)


def _is_class_of_configurations(scheme: object) -> bool:
    """Whether the caller passed the class of a configuration instead of a configuration."""
    names = ("AOBaseConfig", "QuantizationConfigMixin", "FourBit", "Int8")
    return isinstance(scheme, type) and any(kind.__name__ in names for kind in scheme.__mro__)


def _takes_a_layer(function: Callable[..., object]) -> bool:
    """Whether `function` can be called with one argument; True if that is not known."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _patterns(
    model: torch.nn.Module, skip: list[str] | None, configured: list[str] | None
) -> dict[str, str]:
    if skip is not None:
        return dict.fromkeys(skip, "the caller skips it")
    if configured is not None:
        return kept_by_configuration(model, configured)
    return default_patterns(model)


def _choose(
    model: torch.nn.Module, patterns: dict[str, str]
) -> tuple[dict[str, LinearLayer], dict[str, str]]:
    already = {weight.module for weight in quantized_weights(model)}
    layers: dict[str, LinearLayer] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = linear_kind(module)
        if kind is None or module in already:
            continue
        if layerwise.is_waiting(module):
            skipped[name] = "it waits for the quantizer of an earlier call"
            continue
        pattern = is_skipped(name, patterns) if name else None
        if pattern is not None:
            skipped[name] = patterns[pattern]
            continue
        weight = module._parameters.get("weight")
        if weight is None and hasattr(module, "_is_fsdp_managed_module"):
            skipped[name] = "FSDP has flattened its weight; quantize before you shard"
        elif weight is None:
            skipped[name] = "its weight is computed by a parametrization or weight norm"
        elif is_wrapper(weight) and not is_dtensor(weight):
            skipped[name] = f"its weight is a {type(weight).__name__} already"
        else:
            layers[name] = LinearLayer(module, kind)
    return layers, skipped


def _choose_parameters(
    model: torch.nn.Module,
    scheme: FourBit | Int8 | layerwise.Quantizer,
    patterns: Mapping[str, str],
    named: list[str] | None,
    skips: bool,
    layers: Mapping[str, LinearLayer],
) -> tuple[dict[str, ModuleParameter], dict[str, str]]:
    """The parameters that are quantized besides the weights of `layers`, and why others are not.

    Args:
        model: the model.
        scheme: how they are quantized.
        patterns: what is skipped.
        named: the caller's patterns; None means experts.
        skips: whether the patterns in `patterns` are the caller's; only these override `named`.
        layers: what is quantized already.
    """
    if named and not isinstance(scheme, FourBit):
        raise NotImplementedError(
            f"quantize: parameters={named!r}: {_no_format(scheme)}. Use a 4-bit scheme, or leave "
            "parameters out."
        )
    experts = expert_parameters(model)
    wanted = experts
    if named is not None:
        wanted = named_by(model, named, {layer.module for layer in layers.values()})
    chosen: dict[str, ModuleParameter] = {}
    kept: dict[str, str] = {}
    for name, parameter in (looks_stacked(model) | experts | wanted).items():
        reason = why_skipped(name, patterns if named is None or skips else {})
        if reason is not None:
            kept[name] = reason
        elif not isinstance(scheme, FourBit):
            kept[name] = _no_format(scheme)
        elif name in wanted:
            chosen[name] = parameter
        else:
            kept[name] = (
                f"it stacks the matrices of {parameter.weight.size(0)} experts in one parameter, "
                "which cannot be detected; name it in parameters= to quantize it"
                if named is None
                else "parameters= does not name it"
            )
    return chosen, kept


def _no_format(scheme: FourBit | Int8 | layerwise.Quantizer) -> str:
    """Why `scheme` does not quantize parameters that are not weights of linear layers."""
    if isinstance(scheme, Int8):
        return "bitsandbytes has no int8 format for parameters, only for linear layers"
    if isinstance(scheme, torchao.TorchaoQuantizer):
        return "this configuration of torchao is for linear layers; FqnToConfig names parameters"
    return "a function is only called with linear layers"


def _nothing(model: torch.nn.Module, skipped: dict[str, str]) -> str:
    kept = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:8])
    return (
        f"quantize: {type(model).__name__} has no layer to quantize. Only modules of exactly "
        "torch.nn.Linear, transformers' Conv1D, and column or row parallel layers are quantized"
        + (f"; {len(skipped)} were skipped ({kept}). Pass skip=() to skip none." if kept else ".")
    )


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _check_weights(
    model: torch.nn.Module,
    layers: Mapping[str, LinearLayer],
    parameters: Mapping[str, ModuleParameter],
) -> None:
    weights = {_weight_name(name): layer.weight for name, layer in layers.items()}
    weights |= {name: parameter.weight for name, parameter in parameters.items()}
    tied = tied_names(model)
    for full_name, weight in weights.items():
        # With FSDP1, a layer holds a run of its flat parameter.
        if is_dtensor(weight) or (full_name not in parameters and weight.dim() != 2):
            raise NotImplementedError(
                f"quantize: {full_name} is a {type(weight).__name__} of shape "
                f"{list(weight.shape)}, a shard of a weight whose statistics need the whole. "
                "Quantize before you shard: call dormant.quantize before fully_shard, FSDP or "
                "parallelize_module."
            )
        if weight.is_meta or is_uninitialized(weight):
            raise ValueError(
                f"quantize: {full_name} has neither values nor a history (it is "
                f"{'on the meta device' if weight.is_meta else 'uninitialized'}). Build the model "
                "inside dormant.lazy_init instead."
            )
        if weight.device.type != "cpu":
            raise NotImplementedError(
                f"quantize: {full_name} is on {weight.device}; weights are quantized on the CPU. "
                "Build the model there and move it when it is finished: dormant.materialize(model, "
                'device="cuda").'
            )
        names = tied.get(_C.storage_id(weight)) if owns_storage(weight) else None
        if names is not None:
            raise ValueError(
                f"quantize: {full_name} is tied: {', '.join(names)} share one storage, and a "
                "quantized weight serves one layer only. Skip these layers, or untie them."
            )
    for name, layer in layers.items():
        if "forward" in vars(layer.module):
            raise ValueError(
                f"quantize: the forward of {name or 'the model'} was replaced on the object (by "
                "hooks of accelerate, for example) and would bypass the quantized layer. Quantize "
                "first."
            )
    check_no_optimizer_holds(weights)


def _fused(
    model: torch.nn.Module,
    scheme: FourBit | Int8,
    layers: dict[str, LinearLayer],
    skipped: dict[str, str],
    parameters: dict[str, ModuleParameter],
    skip: list[str] | None,
    configured_skip: list[str] | None,
) -> tuple[list[QuantizedLayer], str]:
    for name, layer in layers.items():
        scheme.check(layer.weight, _weight_name(name))
    for name, parameter in parameters.items():
        scheme.check(parameter.weight, name)
    done: list[QuantizedLayer] = []
    for name, layer in layers.items():
        module, before = layer.module, layer.weight
        was = type(module).__name__
        with torch.no_grad():
            source = before.detach()
            weight = source.t().contiguous() if layer.transposed else source
            scheme.install(module, weight, in_place=not layer.keeps_forward)
        register(
            module,
            source,
            transposed=layer.transposed,
            requires_grad=before.requires_grad,
            packed_format=scheme,
        )
        done.append(
            QuantizedLayer(
                name=name,
                kind=was,
                shape=tuple(source.shape),
                nbytes_before=source.numel() * source.element_size(),
                nbytes=scheme.nbytes(weight.shape),
            )
        )
    if isinstance(scheme, FourBit):
        # Read them all first: the class of a module changes when it gets a parametrization.
        kinds = [type(parameter.module).__name__ for parameter in parameters.values()]
        done += map(functools.partial(_pack, scheme), parameters.values(), kinds)
    if is_pretrained(model):
        names = _patterns_to_save(skip, configured_skip, skipped)
        pretrained.mark(model, pretrained.configuration_of(scheme, names))
    packed = {parameter.module for parameter in parameters.values()}
    pretrained.save_under_own_names(model, packed)
    few_experts.use_for(model, packed)
    return done, str(scheme)


def _pack(scheme: FourBit, parameter: ModuleParameter, kind: str) -> QuantizedLayer:
    module, before = parameter.module, parameter.weight
    packed_format = FourBitParameter(scheme, parameter.attribute)
    with torch.no_grad():
        source = before.detach()
        packed_format.install(module, source)
    register(
        module,
        source,
        transposed=False,
        requires_grad=before.requires_grad,
        packed_format=packed_format,
    )
    return QuantizedLayer(
        name=parameter.name,
        kind=kind,
        shape=tuple(source.shape),
        nbytes_before=source.numel() * source.element_size(),
        nbytes=scheme.nbytes(source.shape),
        is_parameter=True,
    )


def _patterns_to_save(
    skip: list[str] | None, configured_skip: list[str] | None, skipped: dict[str, str]
) -> list[str] | None:
    """What the configuration of a transformers model says about skipped layers.

    None, its default, means the same layers as our default, except for the adapters.
    """
    if skip is not None:
        return skip
    if configured_skip is None and any("lora" in name for name in skipped):
        return [ADAPTERS, *(name for name in skipped if "lora" not in name)]
    return configured_skip


def _by_name(
    model: torch.nn.Module, scheme: torchao.TorchaoByName, patterns: dict[str, str]
) -> QuantizeReport:
    """Quantizes what a FqnToConfig of torchao names, each module separately."""
    chosen: dict[str, ModuleParameter] = {}
    quantizers: list[tuple[str, torch.nn.Module, layerwise.Quantizer]] = []
    names: dict[str, ModuleParameter] = {}
    kept: dict[str, str] = {}
    for name, module, part in scheme.chosen(model):
        pattern = is_skipped(name, patterns) if name else None
        if pattern is not None:
            kept[name] = patterns[pattern]
            continue
        if layerwise.is_waiting(module):
            kept[name] = "it waits for the quantizer of an earlier call"
            continue
        quantizers.append((name, module, part))
        for attribute in part.parts:
            full = ".".join(filter(None, (name, attribute)))
            each = ModuleParameter(full, module, attribute or "weight")
            if own_parameter(module, each.attribute) is None:
                raise ValueError(
                    f"quantize: the configuration names {full or 'the model'}, a "
                    f"{type(module).__name__}, which has no parameter {each.attribute!r}. Name the "
                    "parameters, or modules that have a weight."
                )
            names[full] = each
            chosen[full if attribute else _weight_name(name)] = each
    if not quantizers:
        raise ValueError(_nothing(model, kept))
    _check_weights(model, {}, chosen)
    total = parameter_nbytes(model)
    done = [
        QuantizedLayer(
            name=full,
            kind=type(each.module).__name__,
            shape=tuple(each.weight.shape),
            nbytes_before=each.weight.numel() * each.weight.element_size(),
            nbytes=None,
            is_parameter=linear_kind(each.module) is None,
        )
        for full, each in names.items()
    ]
    for name, module in model.named_modules():
        if linear_kind(module) is not None and name not in kept and name not in names:
            kept[name] = "the configuration does not name it"
    kept = {name: why for name, why in kept.items() if _weight_name(name) not in chosen}
    kept |= large_parameters(model, {*names, *chosen, *kept})
    for name, module, quantizer in quantizers:
        if any(_C.is_lazy(parameter) for parameter in module.parameters()):
            layerwise.postpone([module], quantizer)
        else:
            layerwise.quantize_now(model, [(name, module)], quantizer)
    return QuantizeReport(type(scheme.configuration).__name__, done, kept, total)


def _layer_by_layer(
    model: torch.nn.Module,
    scheme: Scheme,
    quantizer: layerwise.Quantizer,
    layers: dict[str, LinearLayer],
    skipped: dict[str, str],
) -> tuple[list[QuantizedLayer], str]:
    if torchao.is_configuration(getattr(scheme, "quant_type", scheme)):
        for name, layer in list(layers.items()):
            if layer.kind != "linear":
                skipped[name] = "torchao quantizes torch.nn.Linear only"
                del layers[name]
    inner = scheme.func if isinstance(scheme, functools.partial) else scheme
    chosen = {name: layer.module for name, layer in layers.items()}
    done = [
        QuantizedLayer(
            name=name,
            kind=type(layer.module).__name__,
            shape=tuple(layer.weight.shape),
            nbytes_before=layer.weight.numel() * layer.weight.element_size(),
            nbytes=None,
        )
        for name, layer in layers.items()
    ]
    lazy = {name: layer for name, layer in chosen.items() if _C.is_lazy(layers[name].weight)}
    layerwise.quantize_now(
        model, [(name, layer) for name, layer in chosen.items() if name not in lazy], quantizer
    )
    layerwise.postpone(lazy.values(), quantizer)
    return done, getattr(inner, "__name__", type(inner).__name__)
