"""A model that was loaded but not materialized: lazy, complete, and without work in vain."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from eager_load import (
    Saver,
    assert_same_model,
    eager_loaded,
    lazy,
    state_of,
)
from loaded_modules import Nested, Plain, Tied
from torch import nn

import dormant
from compare import assert_same_bits

RANDOM = {"aten::uniform_", "aten::normal_", "aten::fill_", "aten::zero_"}


def lazy_names(model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if dormant.is_lazy(tensor)}


@pytest.mark.parametrize("kind", [Plain, Nested, Tied])
def test_it_stays_lazy_until_it_is_materialized(
    kind: type[nn.Module], saved_any_way: Saver
) -> None:
    state = state_of(kind)
    model = lazy(kind)
    before = lazy_names(model)
    assert before
    dormant.load(model, saved_any_way(state), materialize=False)
    assert lazy_names(model) == before
    dormant.materialize(model)
    assert_same_model(eager_loaded(kind, state), model)


def test_initializations_that_are_replaced_leave_the_history(saved: Saver) -> None:
    state = {k: t for k, t in state_of(Plain).items() if not k.startswith("layers")}
    model = lazy(Plain)
    dormant.load(model, saved(state), materialize=False)
    for name, tensor in model.state_dict().items():
        if dormant.is_lazy(tensor):
            drawn = RANDOM & set(dormant._C.operators(tensor))
            assert bool(drawn) == name.startswith("layers"), name


def test_a_second_checkpoint_adds_to_it(saved: Saver) -> None:
    state = state_of(Plain)
    body = {k: t for k, t in state.items() if not k.startswith("layers")}
    rest = {k: t for k, t in state.items() if k.startswith("layers")}
    model = lazy(Plain)
    dormant.load(model, saved(body), materialize=False)
    dormant.load(model, saved(rest))
    assert_same_model(eager_loaded(Plain, state), model)


def test_the_file_may_be_removed_in_between(saved: Saver) -> None:
    state = state_of(Plain)
    path: Path = saved(state)
    model = lazy(Plain)
    dormant.load(model, path, materialize=False)
    path.unlink()
    dormant.materialize(model)
    assert_same_model(eager_loaded(Plain, state), model)


def test_it_can_be_saved_without_coming_to_life(saved: Saver, tmp_path: Path) -> None:
    state = {k: t for k, t in state_of(Plain).items() if not k.startswith("layers")}
    model = lazy(Plain)
    before = lazy_names(model)
    dormant.load(model, saved(state), materialize=False)
    dormant.save(model, tmp_path / "converted.safetensors")
    assert lazy_names(model) == before
    expected = eager_loaded(Plain, state, strict=False).state_dict()
    got = safetensors.torch.load_file(tmp_path / "converted.safetensors")
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)


def test_a_dtype_is_kept_in_mind(saved: Saver) -> None:
    state = state_of(Plain)
    model = lazy(Plain)
    dormant.load(model, saved(state), dtype=torch.bfloat16, materialize=False)
    assert dormant.is_lazy(model.get_parameter("embedding.weight"))
    dormant.materialize(model)
    expected = eager_loaded(Plain, state)
    table = expected.get_buffer("cache")
    expected.to(torch.bfloat16).register_buffer("cache", table, persistent=False)
    assert_same_model(expected, model)


@pytest.mark.parametrize("kind", [Plain, Nested, Tied])
def test_pytorchs_own_load_state_dict_takes_a_checkpoint(
    kind: type[nn.Module], saved: Saver
) -> None:
    state = state_of(kind)
    model = lazy(kind)
    before = lazy_names(model)
    model.load_state_dict(dormant.open_checkpoint(saved(state)))
    assert lazy_names(model) == before
    dormant.materialize(model)
    assert_same_model(eager_loaded(kind, state), model)


@pytest.mark.parametrize("assign", [False, True])
def test_dict_comprehensions_on_a_checkpoint(assign: bool, saved: Saver) -> None:
    state = state_of(Plain)
    checkpoint = dormant.open_checkpoint(saved({f"model.{k}": t for k, t in state.items()}))
    model = lazy(Plain)
    model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in checkpoint.items()}, assign=assign
    )
    dormant.materialize(model)
    expected = eager_loaded(Plain, state)
    for name, tensor in expected.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[name], name)
