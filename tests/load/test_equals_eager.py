"""A loaded model is what eager construction and `load_state_dict` make, bit for bit."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_load import (
    Saver,
    assert_same_model,
    eager,
    eager_loaded,
    lazy,
    state_of,
)
from loaded_modules import Counting, Forgiving, Fused, Nested, Normalized, Plain, Renaming, Tied
from torch import nn

import dormant
from compare import assert_same_bits
from reachable import holdings

KINDS = [Plain, Normalized, Renaming, Forgiving, Fused, Tied, Nested]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lazy_model_becomes_the_eager_one(kind: type[nn.Module], saved_any_way: Saver) -> None:
    state = state_of(kind)
    model = lazy(kind)
    dormant.load(model, saved_any_way(state))
    assert_same_model(eager_loaded(kind, state), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_model_is_written_in_place(kind: type[nn.Module], saved_any_way: Saver) -> None:
    state = state_of(kind)
    model = eager(kind)
    before = {name: (id(t), t.data_ptr()) for name, t in holdings(model).tensors.items()}
    dormant.load(model, saved_any_way(state))
    after = {name: (id(t), t.data_ptr()) for name, t in holdings(model).tensors.items()}
    assert after == before
    assert_same_model(eager_loaded(kind, state), model)


def test_a_model_may_be_partly_real(saved: Saver) -> None:
    state = state_of(Plain)
    model = lazy(Plain)
    dormant.materialize(model.get_submodule("layers.1"))
    real = model.get_parameter("layers.1.weight")
    pointer = real.data_ptr()
    dormant.load(model, saved(state))
    assert real.data_ptr() == pointer
    assert_same_model(eager_loaded(Plain, state), model)


def test_objects_stay_what_they_were(saved: Saver) -> None:
    state = state_of(Plain)
    model = lazy(Plain)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    view = model.get_parameter("embedding.weight").detach()[:2]
    dormant.load(model, saved(state))
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    held = optimizer.param_groups[0]["params"]
    assert all(one is other for one, other in zip(held, model.parameters(), strict=True))
    assert_same_bits(state["embedding.weight"][:2], view)


def test_loading_draws_no_random_numbers(saved: Saver) -> None:
    state = state_of(Plain)
    path = saved(state)
    model = lazy(Plain)
    before = torch.get_rng_state()
    dormant.load(model, path)
    assert torch.equal(torch.get_rng_state(), before)
    eager(Plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_state_does_not_hold_is_initialized(saved: Saver) -> None:
    """Non-persistent buffers and plain attributes have eager's values."""
    state = state_of(Plain)
    model = lazy(Plain)
    dormant.load(model, saved(state))
    expected = eager(Plain)
    for name in ("cache", "noise"):
        assert_same_bits(getattr(expected, name), getattr(model, name), name)


def test_pre_hooks_rename_and_reshape(saved_any_way: Saver) -> None:
    state = {"gamma": torch.randn(24), "beta": torch.randn(2, 6)}
    model = lazy(Renaming)
    dormant.load(model, saved_any_way(state))
    assert_same_bits(state["gamma"].view(4, 6).t(), model.get_parameter("weight"))
    assert_same_bits(state["beta"][0], model.get_parameter("bias"))
    assert_same_model(eager_loaded(Renaming, state), model)


def test_a_post_hook_may_forgive_missing_names(saved: Saver) -> None:
    state = {name: t for name, t in state_of(Forgiving).items() if "new." not in name}
    model = lazy(Forgiving)
    dormant.load(model, saved(state), missing="error")
    assert_same_model(eager_loaded(Forgiving, state), model)


def test_a_module_may_load_itself(saved_any_way: Saver) -> None:
    state = {kind: torch.randn(4, 4) for kind in "qkv"}
    model = lazy(Fused)
    dormant.load(model, saved_any_way(state))
    assert_same_model(eager_loaded(Fused, state), model)


def test_hooks_below_a_prefix_see_their_prefix(saved: Saver) -> None:
    state = state_of(Nested)
    qkv = state.pop("fused.qkv")
    state |= {f"fused.{kind}": part for kind, part in zip("qkv", qkv.chunk(3), strict=True)}
    state["renaming.gamma"] = state.pop("renaming.weight").t().reshape(24)
    model = lazy(Nested)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(Nested, state), model)


def test_a_hook_that_computes_gets_values(saved: Saver) -> None:
    def build() -> nn.Module:
        layer = nn.Linear(4, 4)
        layer.register_load_state_dict_pre_hook(double)
        return layer

    def double(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if float(state[prefix + "weight"].abs().max()) > 0:
            state[prefix + "weight"] = state[prefix + "weight"] * 2

    state = state_of(lambda: nn.Linear(4, 4))
    model = lazy(build)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(build, state), model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_extra_state_is_set(start: Callable[..., nn.Module]) -> None:
    state = state_of(Counting)
    state["_extra_state"] = {"steps": 17}  # type: ignore[assignment]
    model = start(Counting)
    dormant.load(model, state)
    assert model.steps == 17
    assert_same_model(eager_loaded(Counting, state), model)


def test_a_counter_that_old_states_lack_stays_as_constructed(saved: Saver) -> None:
    state = state_of(Normalized)
    del state["norm.num_batches_tracked"]
    # A state without metadata is of a version that knew no counter.
    expected = eager_loaded(Normalized, state)
    model = lazy(Normalized)
    dormant.load(model, saved(state))
    assert_same_model(expected, model)


def test_metadata_of_a_state_decides_as_in_eager() -> None:
    state = collections.OrderedDict(state_of(Normalized))
    del state["norm.num_batches_tracked"]
    state._metadata = {"": {"version": 1}, "norm": {"version": 2}}  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        eager(Normalized).load_state_dict(state)
    with pytest.raises(KeyError, match="num_batches_tracked"):
        dormant.load(lazy(Normalized), state, missing="error")


def test_metadata_counts_where_shapes_are_ignored_too() -> None:
    state = collections.OrderedDict(state_of(Normalized))
    del state["norm.num_batches_tracked"]
    state["convolution.bias"] = torch.ones(9)
    state._metadata = {"": {"version": 1}, "norm": {"version": 2}}  # type: ignore[attr-defined]
    report = dormant.load(lazy(Normalized), state, mismatched="init")
    assert set(report.missing_keys) == {"norm.num_batches_tracked"}
    assert [name for name, _, _ in report.mismatched_keys] == ["convolution.bias"]


def test_a_load_state_dict_of_the_models_own_may_return_nothing(saved: Saver) -> None:
    class Silent(Plain):
        def load_state_dict(self, state: Any, strict: bool = True) -> None:  # type: ignore[override]
            super().load_state_dict(state, strict)

    state = state_of(Plain)
    del state["coarse"]
    model = lazy(Silent)
    with pytest.raises(KeyError, match="surplus"):
        dormant.load(model, saved({**state, "surplus": torch.ones(1)}))
    report = dormant.load(model, saved(state))
    assert report.missing_keys == ("coarse",)
    assert_same_model(eager_loaded(Plain, state, strict=False), model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_it_works_in_inference_mode(start: Callable[..., nn.Module], saved: Saver) -> None:
    state = state_of(Plain)
    path = saved(state)
    with torch.inference_mode():
        model = start(Plain)
        dormant.load(model, path)
        expected = eager_loaded(Plain, state)
    for name, tensor in expected.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[name], name)


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")
def test_a_traced_and_a_scripted_module_are_written_in_place(saved: Saver) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU())

    state = state_of(build)
    traced = torch.fx.symbolic_trace(lazy(build))
    scripted = torch.jit.script(eager(build))
    expected = eager_loaded(build, state)
    for model in (traced, scripted):
        with pytest.raises(KeyError, match="surplus"):
            dormant.load(model, {**state, "surplus": torch.ones(1)})
        dormant.load(model, saved(state))
        for name, tensor in expected.state_dict().items():
            assert_same_bits(tensor, model.state_dict()[name], name)


def test_uninitialized_parameters_take_their_shape_from_the_state(saved: Saver) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(6), nn.ReLU())

    state = {"0.weight": torch.randn(6, 9), "0.bias": torch.randn(6)}
    model = lazy(build)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(build, state), model)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_a_checkpoint_is_cast_to_what_the_model_has(
    dtype: torch.dtype, target: torch.dtype, saved: Saver
) -> None:
    def build() -> nn.Module:
        module = nn.Module()
        module.register_buffer("values", torch.zeros(33, 7, dtype=target))
        return module

    if dtype.is_complex:
        values = torch.randn(33, 7, dtype=dtype)
    else:
        values = torch.linspace(-40, 40, 231).view(33, 7).to(dtype)
    if not dtype.is_signed and dtype != torch.bool:
        values = torch.arange(231).view(33, 7).to(dtype)
    model = lazy(build)
    dormant.load(model, saved({"values": values}))
    assert_same_model(eager_loaded(build, {"values": values}), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("start", [lazy, eager])
def test_dtype_is_that_of_parameters_and_persistent_buffers(
    dtype: torch.dtype, start: Callable[..., nn.Module], saved: Saver
) -> None:
    state = {name: t for name, t in state_of(Nested).items() if not name.startswith("recurrent")}
    model = start(Nested)
    parameters = dict(model.named_parameters())
    dormant.load(model, saved(state), dtype=dtype)
    expected = eager_loaded(Nested, state, strict=False)
    table = expected.get_buffer("plain.cache")
    expected.to(dtype)
    expected.get_submodule("plain").register_buffer("cache", table, persistent=False)
    assert_same_model(expected, model)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_a_model_recorded_and_cast_keeps_its_dtype(saved: Saver) -> None:
    state = state_of(Plain)
    model = lazy(Plain).to(torch.bfloat16)
    dormant.load(model, saved(state))
    expected = eager(Plain).to(torch.bfloat16)
    expected.load_state_dict(state)
    assert_same_model(expected, model)


def test_a_scalar_fits_a_vector_of_one_as_in_eager(saved: Saver) -> None:
    """Module._load_from_state_dict takes them from checkpoints of PyTorch 0.3."""

    def build() -> nn.Module:
        module = nn.Module()
        module.register_parameter("scalar", nn.Parameter(torch.zeros(())))
        return module

    state = {"scalar": torch.tensor([3.0])}
    model = lazy(build)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(build, state), model)


def test_a_memory_budget_changes_nothing_in_the_result(saved: Saver) -> None:
    def build() -> nn.Module:
        return nn.Linear(700, 900)

    state = {name: tensor.half() for name, tensor in state_of(build).items()}
    model = lazy(build)
    dormant.load(model, saved(state), memory_budget=1 << 20)
    assert_same_model(eager_loaded(build, state), model)


@pytest.mark.parametrize("mmap", ["auto", "always", "never"])
def test_mapped_or_read_the_values_are_the_same_and_the_models_own(mmap: Any, saved: Saver) -> None:
    state = state_of(Plain)
    path = saved(state)
    models = [lazy(Plain), lazy(Plain)]
    for model in models:
        dormant.load(model, path, mmap=mmap)
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.fill_(1)
    assert path.read_bytes() == before
    assert_same_model(eager_loaded(Plain, state), models[1])


def test_training_goes_on_as_from_the_eager_model(saved: Saver) -> None:
    state = state_of(Normalized)
    model = lazy(Normalized)
    dormant.load(model, saved(state))
    expected = eager_loaded(Normalized, state)
    images = torch.randn(2, 3, 8, 8)
    for each in (model, expected):
        optimizer = torch.optim.Adam(each.parameters())
        for _ in range(2):
            each.get_submodule("norm")(each.get_submodule("convolution")(images)).sum().backward()
            optimizer.step()
    assert_same_model(expected, model)
