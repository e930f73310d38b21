"""Sources and targets that share memory, and who owns what afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from eager_load import Saver, assert_same_model, eager, eager_loaded, fingerprint, lazy, state_of
from loaded_modules import Nested, Plain, Tied
from torch import nn

import dormant
from compare import assert_same_bits
from dormant.tensors.identity import identity

Start = Callable[[Callable[[], nn.Module]], nn.Module]


class Two(nn.Module):
    """Two parameters of one shape, more than what recording copies at once."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(200, 200))
        self.b = nn.Parameter(torch.randn(200, 200))


class Overlapping(nn.Module):
    """A parameter that is a part of another one's memory, and a transposed view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.randn(8, 6))
        self.rows = nn.Parameter(self.whole.data[2:5])
        self.turned = nn.Parameter(self.whole.data.t())


@pytest.mark.parametrize("start", [lazy, eager])
def test_a_model_takes_its_own_state(start: Start) -> None:
    model = start(Plain)
    dormant.load(model, model.state_dict())
    assert_same_model(eager(Plain), model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_swapped_names_are_copied_one_after_the_other_as_in_eager(start: Start) -> None:
    model, expected = start(Two), eager(Two)
    for each, load in ((expected, nn.Module.load_state_dict), (model, dormant.load)):
        state = each.state_dict()
        load(each, {"a": state["b"], "b": state["a"]})
    assert_same_model(expected, model)


class Wheel(nn.Module):
    """Parameters of one shape, each in several tiles, so that two threads work on them."""

    def __init__(self) -> None:
        super().__init__()
        self.spokes = nn.ParameterList(torch.randn(300, 300) for _ in range(5))


@pytest.mark.threads
@pytest.mark.parametrize("start", [lazy, eager])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_model_turned_by_its_own_state_is_as_in_eager(start: Start, steps: int) -> None:
    for _ in range(20):  # which thread is faster must not matter
        model, expected = start(Wheel), eager(Wheel)
        for each, load in ((expected, nn.Module.load_state_dict), (model, dormant.load)):
            state = each.state_dict()
            names = list(state)
            load(each, {name: state[names[i - steps]] for i, name in enumerate(names)})
        assert_same_model(expected, model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_overlapping_parameters_are_written_in_order(start: Start, saved: Saver) -> None:
    state = {
        "whole": torch.randn(8, 6),
        "rows": torch.randn(3, 6),
        "turned": torch.randn(6, 8),
    }
    for chosen in (["whole", "rows", "turned"], ["whole", "rows"], ["rows"], ["turned", "rows"]):
        part = {name: state[name] for name in chosen}
        model = start(Overlapping)
        dormant.load(model, saved(part))
        assert_same_model(eager_loaded(Overlapping, part, strict=False), model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_another_lazy_model_is_a_checkpoint(start: Start) -> None:
    torch.manual_seed(99)
    source = Nested()
    torch.manual_seed(99)
    with dormant.lazy_init():
        recorded = Nested()
    model = start(Nested)
    dormant.load(model, recorded.state_dict())
    assert_same_model(eager_loaded(Nested, source.state_dict()), model)
    # Loading from it left it alone.
    assert dormant.is_lazy(recorded.get_parameter("plain.embedding.weight"))
    dormant.materialize(recorded)
    assert_same_model(source, recorded)


@pytest.mark.parametrize("start", [lazy, eager])
def test_a_real_state_is_copied_not_shared(start: Start) -> None:
    state = state_of(Two)
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = start(Two)
    dormant.load(model, state)
    with torch.no_grad():
        model.get_parameter("a").zero_()
    for name, tensor in state.items():
        assert_same_bits(before[name], tensor, name)
        tensor.fill_(5)
    assert_same_bits(before["b"], model.get_parameter("b"))


def test_what_happens_to_a_real_state_after_a_deferred_load_does_not_matter() -> None:
    state = {"large": torch.randn(200, 200), "small": torch.randn(3)}
    before = {name: tensor.clone() for name, tensor in state.items()}

    def build() -> nn.Module:
        return nn.ParameterDict({k: nn.Parameter(torch.randn_like(t)) for k, t in state.items()})

    model = lazy(build)
    dormant.load(model, state, materialize=False)
    for tensor in state.values():
        tensor.numpy().fill(0)  # no version counter sees it
    dormant.materialize(model)
    assert_same_model(eager_loaded(build, before), model)


def test_a_state_is_not_changed_by_hooks() -> None:
    state = state_of(Nested)
    state["renaming.gamma"] = state.pop("renaming.weight").t().reshape(24)
    before = dict(state)
    dormant.load(lazy(Nested), state)
    assert state.keys() == before.keys()
    assert all(state[name] is tensor for name, tensor in before.items())


@pytest.mark.parametrize("start", [lazy, eager])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.t(),
        lambda t: t[:1].expand(200, 200),
        lambda t: torch.as_strided(t, (200, 200), (1, 1)),
        lambda t: t.flip(0),
        lambda t: nn.Parameter(t),
        lambda t: t.clone().requires_grad_() * 2,
        lambda t: torch.complex(t, t).conj().imag,
    ],
    ids=[
        "transposed",
        "expanded",
        "strided",
        "flipped",
        "parameter",
        "graph",
        "negative",
    ],
)
def test_sources_of_any_layout(
    start: Start, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state = state_of(Two)
    state["a"] = change(state["a"])
    model = start(Two)
    dormant.load(model, state)
    assert_same_model(eager_loaded(Two, state), model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_a_source_that_cannot_be_copied_is_refused_as_in_eager(start: Start) -> None:
    state = state_of(Two)
    state["b"] = state["b"].to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        eager(Two).load_state_dict(state)
    model = start(Two)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="sparse"):
        dormant.load(model, state)
    assert fingerprint(model) == before
    dormant.materialize(model)
    assert_same_model(eager(Two), model)


def test_gradients_stay(saved: Saver) -> None:
    model, expected = eager(Two), eager(Two)
    for each in (model, expected):
        for parameter in each.parameters():
            parameter.grad = torch.full_like(parameter, 3)
    state = state_of(Two)
    dormant.load(model, saved(state))
    expected.load_state_dict(state)
    for name, parameter in expected.named_parameters():
        grad = model.get_parameter(name).grad
        assert parameter.grad is not None
        assert grad is not None
        assert_same_bits(parameter.grad, grad)
    assert_same_model(expected, model)


def test_parameters_loaded_in_place_are_known_to_autograd_as_changed(saved: Saver) -> None:
    path = saved(state_of(Two))
    model = eager(Two)
    product = (model.get_parameter("a") * model.get_parameter("b")).sum()
    dormant.load(model, path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("kind", [Plain, Nested, Tied])
def test_inside_a_context(kind: type[nn.Module], saved: Saver) -> None:
    state = state_of(kind)
    path = saved(state)
    torch.manual_seed(8)
    with dormant.lazy_init():
        model = kind()
        dormant.load(model, path, materialize=False)
        dormant.load(model, path)
    assert_same_model(eager_loaded(kind, state), model)


def test_in_inference_mode(saved: Saver) -> None:
    state = state_of(Plain)
    path = saved(state)
    model = lazy(Plain)
    with torch.inference_mode():
        dormant.load(model, path)
    assert_same_model(eager_loaded(Plain, state), model)


def test_one_file_loads_two_models_that_share_nothing(saved: Saver) -> None:
    state = state_of(Two)
    checkpoint = dormant.open_checkpoint(saved(state))
    first, second = lazy(Two), lazy(Two)
    dormant.load(first, checkpoint)
    with torch.no_grad():
        first.get_parameter("a").zero_()
    dormant.load(second, checkpoint)
    assert_same_model(eager_loaded(Two, state), second)


def test_one_tensor_of_a_checkpoint_may_become_two_parameters(saved: Saver) -> None:
    checkpoint = dormant.open_checkpoint(saved({"t": torch.arange(40000.0).view(200, 200)}))
    tensor = checkpoint["t"]
    model = lazy(Two)
    dormant.load(model, {"a": tensor, "b": tensor})
    with torch.no_grad():
        model.get_parameter("a").zero_()
    assert_same_bits(torch.arange(40000.0).view(200, 200), model.get_parameter("b"))
    assert dormant.is_lazy(tensor)


class Conjugate(nn.Module):
    """The same elements read as they are, conjugated, and as the negated imaginary parts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("conjugate", self.whole.conj())
        self.register_buffer("negative", self.whole.conj().imag)


class Reinterpreted(nn.Module):
    """The same bytes as other dtypes, and a real tie."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("floats", torch.randn(4))
        self.register_buffer("integers", self.floats.view(torch.int32))
        self.register_buffer("halves", self.floats.view(torch.bfloat16))
        self.register_buffer("tied", self.floats)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.randn(3, 2))
        self.register_buffer("numbers", torch.view_as_complex(self.pairs))


VIEWS = pytest.mark.parametrize("build", [Conjugate, Reinterpreted, Complex])


def _values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@VIEWS
@pytest.mark.parametrize("start", [lazy, eager])
@pytest.mark.parametrize("turned", [False, True])
def test_other_readings_of_the_same_elements_load_as_in_eager(
    build: type[nn.Module], start: Start, turned: bool, tmp_path: Path
) -> None:
    torch.manual_seed(77)
    state = _values(build())
    if turned:
        state = dict(reversed(state.items()))
    torch.save(state, tmp_path / "model.pt")
    for checkpoint in (state, tmp_path / "model.pt"):
        model = start(build)
        dormant.load(model, checkpoint)
        assert_same_model(eager_loaded(build, state), model)
    for name in state:
        part = {name: state[name]}
        model = start(build)
        report = dormant.load(model, part)
        assert_same_model(eager_loaded(build, part, strict=False), model)
        missing = set(state) - {name}
        if name in ("floats", "tied"):
            missing -= {"floats", "tied"}  # one of a tie's names is enough
        assert set(report.missing_keys) == missing


@VIEWS
@pytest.mark.parametrize("start", [lazy, eager])
def test_other_readings_of_the_same_elements_are_saved_and_listed_each(
    build: type[nn.Module], start: Start, tmp_path: Path
) -> None:
    expected, model = eager(build), start(build)
    names = {
        name: names
        for tensor in dormant.summary(model).tensors
        for names in [tensor.names]
        for name in names
    }
    assert set(names) == set(expected.state_dict())
    assert all(len(tied) == 1 or set(tied) == {"floats", "tied"} for tied in names.values())
    dormant.save(model, tmp_path)
    saved = dormant.open_checkpoint(tmp_path)
    assert set(saved) == set(names) - {"tied"}
    for name, tensor in saved.items():
        dormant.materialize(tensor)
        assert_same_bits(expected.state_dict()[name].resolve_conj().resolve_neg(), tensor, name)
    dormant.load(eager(build), tmp_path)
    report = dormant.materialize(model)
    assert {name for tensor in report.tensors for name in tensor.names} == set(names)
    assert_same_model(expected, model)
    again = lazy(build)
    dormant.load(again, tmp_path)
    assert_same_model(expected, again)


def test_one_question_about_identity_has_one_answer() -> None:
    base = torch.arange(6.0).view(2, 3)
    number = torch.zeros(2, dtype=torch.complex64)
    with dormant.lazy_init():
        recorded = torch.randn(4)
    for one, other, same in (
        (base, base, True),
        (base, base.detach(), True),
        (base, nn.Parameter(base), True),
        (recorded, recorded.view(4), True),
        (base, base.clone(), False),
        (base, base.t(), False),
        (base, base.view(3, 2), False),
        (base, base[:1], False),
        (base[0], base[1], False),
        (base, base.view(torch.int32), False),
        (number, number.conj(), False),
        (number.imag, number.conj().imag, False),
        (base.to_sparse(), base.to_sparse(), False),
        (nn.UninitializedParameter(), nn.UninitializedParameter(), False),
        (torch.ones(2, device="meta"), torch.ones(2, device="meta"), False),
    ):
        assert (identity(one) == identity(other)) is same, (one, other)
        assert identity(one) == identity(one)
        assert isinstance(hash(identity(one)), int)
