"""Checkpoints meet quantized lazy layers: in full precision through their sources, or packed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exposing import load_exposed
from parallel_layers import ColumnParallelLinear
from peers import assert_same_quantized, assert_same_state, four_bit, int8
from torch import nn
from transformers.pytorch_utils import Conv1D

import dormant
from compare import assert_same_bits
from dormant.quantization.layers import QuantizedWeight, quantized_weights
from living import live_storages

SCHEMES: dict[str, Any] = {
    "nf4": "nf4",
    "fp4": dormant.FourBit(kind="fp4", nested=False),
    "int8": "int8",
}


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))


def lazy(seed: int, scheme: Any) -> Any:
    with dormant.lazy_init():
        model = build(seed)
    dormant.quantize(model, scheme, skip=())
    return model


def peer(model: nn.Module, scheme: str) -> nn.Sequential:
    """The model as bitsandbytes quantizes it."""
    if scheme == "int8":
        return nn.Sequential(*(int8(layer) for layer in model.children()))
    return nn.Sequential(
        *(
            four_bit(layer, quant_type=scheme, compress_statistics=scheme == "nf4")
            for layer in model.children()
        )
    )


def only(model: nn.Module) -> QuantizedWeight:
    (weight,) = quantized_weights(model)
    return weight


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_state_dict_in_full_precision(scheme: str, assign: bool) -> None:
    model = lazy(1, SCHEMES[scheme])
    packed = [model[0].weight, model[1].weight]
    result = load_exposed(model, build(2).state_dict(), assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert [model[0].weight, model[1].weight] == packed or all(
        a is b for a, b in zip([model[0].weight, model[1].weight], packed, strict=True)
    )
    dormant.materialize(model)
    theirs = peer(build(2), scheme)
    for mine, expected in zip(model, theirs, strict=True):
        assert_same_quantized(mine, expected)
    assert_same_state(model, theirs)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_weights_that_the_checkpoint_lacks_are_initialized_and_quantized(scheme: str) -> None:
    model = lazy(1, SCHEMES[scheme])
    state = {name: t for name, t in build(2).state_dict().items() if name.startswith("0")}
    result = load_exposed(model, state, strict=False)
    assert result.missing_keys == ["1.weight", "1.bias"]
    dormant.materialize(model)
    assert_same_state(model[0], peer(build(2), scheme)[0])
    assert_same_state(model[1], peer(build(1), scheme)[1])


def test_names_sources_and_what_they_are() -> None:
    model = lazy(1, "nf4")
    weights = quantized_weights(model)
    assert [weight.name for weight in weights] == ["0.weight", "1.weight"]
    assert [weight.module for weight in weights] == [model[0], model[1]]
    assert weights[0].source.shape == (96, 64)
    assert weights[0].source.dtype == torch.float32
    assert dormant.is_lazy(weights[0].source)
    assert weights[0].is_lazy
    assert "1.weight.quant_state.bitsandbytes__nf4" in weights[1].prequantized_names()
    assert "0.SCB" in weights[0].prequantized_names()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_sources_stay_lazy_when_the_model_is_used(scheme: str) -> None:
    model = lazy(1, SCHEMES[scheme])
    model.state_dict()
    model(torch.randn(2, 64))
    assert model[0].weight.sum() is not None
    weights = quantized_weights(model)
    assert len(weights) == 2
    assert all(dormant.is_lazy(weight.source) or weight.source.is_meta for weight in weights)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_real_tensors_that_are_assigned_are_not_kept(scheme: str) -> None:
    model = lazy(1, SCHEMES[scheme])
    load_exposed(model, build(2).state_dict(), assign=True)
    assert [weight.source.is_meta for weight in quantized_weights(model)] == [True, True]


def test_while_exposed_the_state_dict_has_the_float_weights() -> None:
    model = lazy(1, "nf4")
    (first, second) = quantized_weights(model)
    with first.expose(), second.expose():
        assert list(model.state_dict()) == list(build(1).state_dict())
        assert all(dormant.is_lazy(tensor) for tensor in model.state_dict().values())
    assert type(model[0].weight) is not nn.Parameter


def test_a_dtype_is_what_is_quantized() -> None:
    model = lazy(1, "nf4")
    for weight in quantized_weights(model):
        with weight.expose(dtype=torch.bfloat16):
            pass
    dormant.materialize(model)
    for mine, eager in zip(model, build(1), strict=True):
        expected = four_bit(eager.to(torch.bfloat16), quant_type="nf4")
        assert_same_quantized(mine, expected)


def test_partial_writes_add_to_the_initialization() -> None:
    model = lazy(1, "nf4")
    for weight in quantized_weights(model):
        with weight.expose() as exposed, torch.no_grad():
            exposed[3:5].fill_(0.25)
            exposed.mul_(2)
    dormant.materialize(model)
    eager = build(1)
    with torch.no_grad():
        for layer in eager:
            layer.weight[3:5].fill_(0.25)
            layer.weight.mul_(2)
    assert_same_state(model, peer(eager, "nf4"))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_after_an_exception_everything_is_as_it_was(scheme: str) -> None:
    model = lazy(1, SCHEMES[scheme])
    before = [dict(vars(layer.weight)) for layer in model]
    packed = [layer.weight for layer in model]
    bad = build(2).state_dict()
    bad["1.weight"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_exposed(model, bad)
    assert all(a.weight is b for a, b in zip(model, packed, strict=True))
    for layer, attributes in zip(model, before, strict=True):
        assert all(vars(layer.weight)[name] is value for name, value in attributes.items())
    dormant.materialize(model[0].weight)
    assert_same_bits(model[0].weight, peer(build(1), scheme)[0].weight, "weight")


def test_conv1d_loads_as_it_was_saved() -> None:
    def conv(seed: int) -> Conv1D:
        torch.manual_seed(seed)
        return Conv1D(96, 64)

    with dormant.lazy_init():
        layer = conv(1)
    dormant.quantize(layer, "nf4")
    load_exposed(layer, conv(2).state_dict())
    dormant.materialize(layer)
    linear = nn.Linear(64, 96)
    with torch.no_grad():
        linear.weight.copy_(conv(2).weight.t())
        linear.bias.zero_()
    assert_same_state(layer, four_bit(linear, quant_type="nf4"))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_parallel_layers_load_their_part(scheme: str) -> None:
    def column(seed: int) -> ColumnParallelLinear:
        torch.manual_seed(seed)
        return ColumnParallelLinear(64, 128, parts=2)

    with dormant.lazy_init():
        layer = column(1)
    dormant.quantize(layer, scheme)
    load_exposed(layer, column(2).state_dict())
    dormant.materialize(layer)
    linear = nn.Linear(64, 64)
    linear.weight, linear.bias = column(2).weight, column(2).bias
    theirs = int8(linear) if scheme == "int8" else four_bit(linear, quant_type=scheme)
    inputs = torch.randn(3, 64)
    assert_same_bits(layer(inputs), theirs(inputs), "forward")


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_model_that_is_real_loads_again(scheme: str) -> None:
    """Also after a forward, which moves or reorders what bitsandbytes holds."""
    model = lazy(1, SCHEMES[scheme])
    dormant.materialize(model)
    model.eval()(torch.randn(2, 64))
    load_exposed(model, build(2).state_dict())
    dormant.materialize(model)
    theirs = peer(build(2), scheme)
    assert_same_state(model, theirs)
    inputs = torch.randn(3, 64)
    assert_same_bits(model(inputs), theirs.eval()(inputs), "forward")


def test_a_real_model_keeps_what_is_not_loaded() -> None:
    model = lazy(1, "nf4")
    dormant.materialize(model)
    pointer = model[1].weight.data_ptr()
    load_exposed(model, {}, strict=False)
    assert not dormant.is_lazy(model)
    assert model[1].weight.data_ptr() == pointer


def test_materialized_models_keep_no_lazy_tensors_alive() -> None:
    before = live_storages()
    model = lazy(1, "nf4")
    assert dormant._C.live_storages() > before
    dormant.materialize(model)
    assert dormant._C.live_storages() == before
    assert [weight.source.is_meta for weight in quantized_weights(model)] == [True, True]


# --- checkpoints that were saved quantized


def packed_state(scheme: str) -> dict[str, torch.Tensor]:
    return peer(build(2), scheme).state_dict()


def accept(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for weight in quantized_weights(model):
        prefix = weight.name.removesuffix("weight")
        weight.accept_prequantized(
            {
                name.removeprefix(prefix): state[name]
                for name in weight.prequantized_names()
                if name in state
            }
        )
        with torch.no_grad():
            weight.module.bias.copy_(state[prefix + "bias"])


@pytest.mark.parametrize("source", ["real", "lazy"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_packed_checkpoints(scheme: str, source: str) -> None:
    model = lazy(1, SCHEMES[scheme])
    packed = [layer.weight for layer in model]
    state = packed_state(scheme)
    if source == "lazy":
        with dormant.lazy_init():
            state = {
                name: torch.empty_like(tensor, device="cpu").copy_(tensor)
                for name, tensor in state.items()
            }
    accept(model, state)
    assert all(a.weight is b for a, b in zip(model, packed, strict=True))
    dormant.materialize(model)
    theirs = peer(build(2), scheme)
    assert_same_state(model, theirs)
    inputs = torch.randn(3, 64)
    assert_same_bits(model(inputs), theirs(inputs), "forward")


def test_packed_weights_are_no_aliases_of_the_checkpoint() -> None:
    model = lazy(1, "int8")
    state = packed_state("int8")
    accept(model, state)
    dormant.materialize(model)
    before = model[0].weight.detach().clone()
    state["0.weight"].zero_()
    assert_same_bits(model[0].weight, before, "weight")


def test_block_sizes_are_those_of_the_checkpoint() -> None:
    model = lazy(1, "nf4")
    eager = nn.Sequential(
        *(four_bit(layer, quant_type="nf4", block_size=256) for layer in build(2))
    )
    accept(model, eager.state_dict())
    dormant.materialize(model)
    assert_same_state(model, eager)
    assert model[0].weight.blocksize == 256


def damaged_state(change: Callable[[str], str]) -> torch.Tensor:
    state = packed_state("nf4")["0.weight.quant_state.bitsandbytes__nf4"]
    text = change(bytes(state.tolist()).decode())
    return torch.tensor(list(text.encode("latin1")), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-5], "quant_state of a nf4 layer .*expected JSON"),
        (lambda text: text.replace("64", "65", 1), "quant_state.shape|blocksize|absmax"),
        (lambda text: text.replace('"nf4"', '"fp4"'), "quant_type.*expected 'nf4', got 'fp4'"),
        (lambda text: text.replace("float32", "object", 1), "quant_state.dtype.*'object'"),
        (lambda text: text.replace('"blocksize": 64', '"blocksize": -64'), "1 to 4096, got -64"),
        (lambda text: text.replace('"blocksize": 64', '"blocksize": 0'), "1 to 4096, got 0"),
        (lambda text: text.replace("[96, 64]", "[64, 96]"), r"expected \[96, 64\]"),
        (lambda text: "[1]", "expected a JSON object, got list"),
        (lambda text: "\xff\xfe", "expected JSON"),
        (lambda text: "[" * 30_000, "expected JSON"),
        (
            lambda text: re.sub(r'(nested_offset": ).*?([,}])', r'\1"x"\2', text),
            "a number, got 'x'",
        ),
    ],
)
def test_damaged_states(change: Callable[[str], str], message: str) -> None:
    model = lazy(1, "nf4")
    state = packed_state("nf4")
    state["0.weight.quant_state.bitsandbytes__nf4"] = damaged_state(change)
    before = vars(model[0].weight).copy()
    with pytest.raises(ValueError, match=message):
        accept(model, state)
    assert vars(model[0].weight) == before


@pytest.mark.parametrize(
    ("scheme", "name", "tensor"),
    [
        ("nf4", "weight", torch.zeros(7, 1, dtype=torch.uint8)),
        ("nf4", "weight.absmax", torch.zeros(96, dtype=torch.float32)),
        ("nf4", "weight.quant_map", torch.zeros(15)),
        ("nf4", "weight.nested_absmax", torch.zeros(2)),
        ("nf4", "weight.nested_quant_map", torch.zeros(256, dtype=torch.float64)),
        ("int8", "weight", torch.zeros(96, 64, dtype=torch.uint8)),
        ("int8", "SCB", torch.zeros(64)),
        ("int8", "weight_format", torch.tensor(2, dtype=torch.uint8)),
    ],
)
def test_parts_that_do_not_fit(scheme: str, name: str, tensor: torch.Tensor) -> None:
    model = lazy(1, scheme)
    state = packed_state(scheme)
    state[f"0.{name}"] = tensor
    with pytest.raises(ValueError, match=f"accept_prequantized: {name} of .*layer of shape"):
        accept(model, state)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("nf4", "weight.absmax"), ("nf4", "weight.nested_quant_map"), ("int8", "SCB")],
)
def test_parts_that_are_missing(scheme: str, name: str) -> None:
    model = lazy(1, scheme)
    state = packed_state(scheme)
    del state[f"0.{name}"]
    with pytest.raises(KeyError, match=name):
        accept(model, state)


def test_a_checkpoint_of_another_scheme() -> None:
    with pytest.raises(KeyError, match=r"missing \['weight.absmax'.*unexpected \['SCB'"):
        accept(lazy(1, "nf4"), packed_state("int8"))
