"""Casts and moves of quantized models: what bitsandbytes' own layers do with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parallel_layers import ColumnParallelLinear
from peers import assert_same_state, four_bit, int8
from torch import nn

import dormant


def build() -> nn.Sequential:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64))


def peer(model: nn.Module, scheme: str) -> Any:
    return nn.Sequential(
        *(
            each
            if not isinstance(each, nn.Linear)
            else int8(each)
            if scheme == "int8"
            else four_bit(each, quant_type=scheme)
            for each in model.children()
        )
    )


def quantized(scheme: str) -> Any:
    with dormant.lazy_init():
        model = build()
    dormant.quantize(model, scheme, skip=())
    return model


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("cpu"),
        lambda model: model.to("cpu", torch.float16),
        lambda model: model.cpu(),
        lambda model: model.requires_grad_(False),
    ],
    ids=["half", "dtype", "device", "both", "cpu", "requires_grad"],
)
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_between_quantizing_and_materializing(
    scheme: str, convert: Callable[[nn.Module], Any]
) -> None:
    model = quantized(scheme)
    convert(model)
    assert dormant.is_lazy(model[0].weight)
    dormant.materialize(model)
    theirs = peer(build(), scheme)
    convert(theirs)
    assert_same_state(model, theirs)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device": "cpu"}], ids=str)
def test_while_materializing(scheme: str, options: dict[str, Any]) -> None:
    model = quantized(scheme)
    dormant.materialize(model, **options)
    theirs = peer(build(), scheme)
    theirs.to(*options.values())
    assert_same_state(model, theirs)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_loading_after_a_cast_of_the_quantized_model(scheme: str) -> None:
    model = quantized(scheme)
    model.half()
    torch.manual_seed(9)
    other = build().state_dict()
    dormant.load(model, other)
    eager = build()
    eager.load_state_dict(other)
    # The cast reached what was not quantized, and the sources stayed what they were.
    theirs = peer(eager, scheme)
    theirs.half()
    assert_same_state(model, theirs)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_quantized_model_that_is_real_is_pickled_as_bitsandbytes_does(scheme: str) -> None:
    model = quantized(scheme)
    dormant.materialize(model)
    pickled = pickle.dumps(model)
    assert_same_state(pickle.loads(pickled), peer(build(), scheme))
    assert b"dormant" not in pickled


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_lazy_quantized_model_is_pickled_as_a_real_one(scheme: str) -> None:
    lazy = quantized(scheme)
    assert_same_state(pickle.loads(pickle.dumps(lazy)), peer(build(), scheme))
    assert dormant.is_lazy(lazy)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_pickling_what_would_not_work_afterwards_is_refused(scheme: str) -> None:
    with dormant.lazy_init():
        lazy, parallel = nn.Linear(64, 64), ColumnParallelLinear(64, 64)
    dormant.quantize(lazy, scheme)
    with (
        dormant.recipes.pickling(),
        pytest.raises(NotImplementedError, match=r"dormant\.materialize it first"),
    ):
        pickle.dumps(lazy)
    dormant.quantize(parallel, scheme)
    dormant.materialize(parallel)
    with pytest.raises(NotImplementedError, match="Save its state_dict"):
        pickle.dumps(parallel)
