"""torchao's configurations and functions: one layer after the other, with eager's values."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torchao.quantization as ao
from torch import nn
from transformers import TorchAoConfig

import dormant
from compare import assert_same_bits


def build(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(9)
    return nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 8)
    ).to(dtype)


def lazy(dtype: torch.dtype = torch.float32) -> Any:
    with dormant.lazy_init():
        return build(dtype)


CONFIGURATIONS = [
    ao.Int8WeightOnlyConfig(),
    ao.Int8DynamicActivationInt8WeightConfig(),
    ao.Float8WeightOnlyConfig(),
    ao.IntxWeightOnlyConfig(weight_dtype=torch.int4),
    ao.Int8DynamicActivationIntxWeightConfig(),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: type(c).__name__)
def test_torchao(configuration: Any, dtype: torch.dtype) -> None:
    mine = lazy(dtype)
    report = dormant.quantize(mine, configuration, skip=["4"])
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert dormant.is_lazy(mine[0].weight)
    dormant.materialize(mine)

    theirs = build(dtype)
    # Its own pass over the whole model, but for the head.
    ao.quantize_(theirs[:4], configuration)
    assert_same_parts(mine, theirs)
    inputs = torch.randn(4, 64).to(dtype)
    with torch.no_grad():
        assert_same_bits(mine(inputs), theirs(inputs), "output")


def assert_same_parts(mine: Any, theirs: Any) -> None:
    for (name, got), expected in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert type(got) is type(expected), name
        if not hasattr(expected, "__tensor_flatten__"):
            assert_same_bits(got, expected, name)
            continue
        parts, context = expected.__tensor_flatten__()
        assert got.__tensor_flatten__()[0] == parts
        assert str(got.__tensor_flatten__()[1]) == str(context)
        for part in parts:
            assert_same_bits(getattr(got, part), getattr(expected, part), f"{name}.{part}")


def test_torchao_through_transformers_configuration() -> None:
    configuration = TorchAoConfig(ao.Int8WeightOnlyConfig(), modules_to_not_convert=["0"])
    mine = lazy()
    report = dormant.quantize(mine, configuration)
    assert [layer.name for layer in report.layers] == ["2", "4"]
    dormant.materialize(mine)
    theirs = build()
    ao.quantize_(theirs[2:], ao.Int8WeightOnlyConfig())
    assert_same_parts(mine, theirs)


def test_configurations_by_name() -> None:
    by_name = ao.FqnToConfig({"0": ao.Int8WeightOnlyConfig(), "2": ao.Float8WeightOnlyConfig()})
    theirs = build()
    ao.quantize_(theirs, by_name, filter_fn=None)
    for configuration in (by_name, TorchAoConfig(by_name)):
        mine = lazy()
        report = dormant.quantize(mine, configuration)
        assert [layer.name for layer in report.layers] == ["0", "2"]
        assert report.skipped == {"4": "the configuration does not name it"}
        dormant.materialize(mine)
        assert_same_parts(mine, theirs)
    mine = lazy()
    dormant.quantize(mine, ao.Int8WeightOnlyConfig(), skip=["2", "4"])
    report = dormant.quantize(mine, by_name, skip=["4"])
    assert [layer.name for layer in report.layers] == ["2"]
    assert report.skipped["0"] == "it waits for the quantizer of an earlier call"
    dormant.materialize(mine)
    assert_same_parts(mine, theirs)


def test_what_is_quantized_or_will_be_is_left_alone() -> None:
    mine = lazy()
    dormant.quantize(mine, ao.Int8WeightOnlyConfig(), skip=["2", "4"])
    dormant.quantize(mine, "nf4", skip=["4"])
    dormant.materialize(mine)
    assert [type(layer).__name__ for layer in mine][:3] == ["Linear", "GELU", "Linear4bit"]
    report = dormant.quantize(mine, "int8", skip=())
    assert [layer.name for layer in report.layers] == ["4"]
    assert report.skipped == {"0": "its weight is a Int8Tensor already"}


def test_reports_count_the_layers_as_lazy_before() -> None:
    model = lazy()
    dormant.quantize(model, ao.Int8WeightOnlyConfig())
    report = dormant.materialize(model)
    assert report.lazy_rate == 1.0
    assert report.count("real") == 0
    assert report.initialized_bytes == sum(p.nbytes for p in build().parameters())


class Rounded(nn.Module):
    """What a user's quantizer may return: a module of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("codes", (layer.weight * 100).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        codes = self.get_buffer("codes")
        return nn.functional.linear(inputs, codes.to(inputs.dtype) / 100, self.bias)


def test_a_function_gets_each_layer_whole_and_alone() -> None:
    met: list[list[bool]] = []
    model = lazy()

    def quantize(layer: nn.Module) -> nn.Module:
        met.append([dormant.is_lazy(child) for child in children])
        assert isinstance(layer, nn.Linear)
        return Rounded(layer)

    bias = model[0].bias
    dormant.quantize(model, quantize, skip=())
    children = [model[0], model[2], model[4]]
    dormant.materialize(model)
    assert met == [[False, True, True], [False, False, True], [False, False, False]]
    eager = build()
    assert type(model[0]) is Rounded
    assert model[0].bias is bias
    assert_same_bits(model[0].codes, Rounded(eager[0]).codes, "codes")
    assert_same_bits(model[3].weight, eager[3].weight, "norm")


def test_originals_are_dropped_one_by_one() -> None:
    model = lazy()
    alive: list[int] = []
    originals = [weakref.ref(model[0].weight), weakref.ref(model[2].weight)]

    def quantize(layer: nn.Module) -> nn.Module:
        gc.collect()
        alive.append(sum(weight() is not None for weight in originals))
        return Rounded(layer)

    dormant.quantize(model, quantize, skip=["4"])
    dormant.materialize(model)
    assert alive == [2, 1]


def test_layers_of_a_part_that_is_materialized_alone() -> None:
    model = nn.Sequential(lazy(), lazy())
    dormant.quantize(model, lambda layer: Rounded(layer), skip=())
    dormant.materialize(model[0])
    assert all(type(model[0][j]) is Rounded for j in (0, 2, 4))
    assert dormant.is_lazy(model[1][0])
    dormant.materialize(model)
    assert all(type(model[i][j]) is Rounded for i in (0, 1) for j in (0, 2, 4))


def test_a_cast_comes_first() -> None:
    model = lazy()
    dtypes: list[torch.dtype] = []

    def quantize(layer: Any) -> nn.Module:
        dtypes.append(layer.weight.dtype)
        return Rounded(layer)

    dormant.quantize(model, quantize, skip=())
    dormant.materialize(model, dtype=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}


def test_a_real_layer_is_handed_over_at_once() -> None:
    model: Any = build()
    dormant.quantize(model, lambda layer: Rounded(layer))
    assert type(model[0]) is type(model[2]) is Rounded


def test_a_function_that_fails_leaves_the_rest_to_do() -> None:
    model = lazy()
    failures = [RuntimeError("disk full")]

    def quantize(layer: nn.Module) -> nn.Module:
        if layer is second and failures:
            raise failures.pop()
        return Rounded(layer)

    second = model[2]
    dormant.quantize(model, quantize, skip=["4"])
    with pytest.raises(RuntimeError, match="disk full"):
        dormant.materialize(model)
    assert type(model[0]) is Rounded
    assert type(model[2]) is nn.Linear
    dormant.materialize(model)
    assert_same_bits(model[2].codes, Rounded(build()[2]).codes, "codes")


def test_a_function_that_returns_no_module() -> None:
    model = lazy()
    dormant.quantize(model, lambda layer: layer.weight)
    with pytest.raises(TypeError, match="returned Parameter for 0; expected a module"):
        dormant.materialize(model)


def test_a_model_that_is_one_layer_cannot_be_another_module() -> None:
    with dormant.lazy_init():
        layer = nn.Linear(4, 4)
    dormant.quantize(layer, lambda layer: Rounded(layer))
    with pytest.raises(ValueError, match=r"another module for the model itself.*in place"):
        dormant.materialize(layer)
