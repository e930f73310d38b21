"""Mathematics that autograd notes: recorded, with the graph that eager has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dormant
from compare import assert_same_bits, build_both
from idiom import Idiom, Idioms
from living import live_storages

idiom = Idioms()
Tensors = list[torch.Tensor]


@idiom(marks=(pytest.mark.core,))
def mathematics_on_parameters() -> dict[str, Any]:
    model = nn.Linear(6, 4)
    return {
        "model": model,
        "scaled": model.weight * 2,
        "product": model.weight @ model.weight.t(),
        "normalized": F.layer_norm(model.weight, (6,)),
        "norm": model.weight.norm(dim=1),
        "factors": list(torch.linalg.qr(model.weight)),
        "largest": list(model.weight.max(0)),
        "joined": torch.cat([model.weight, model.bias[:, None]], dim=1),
        "padded": F.pad(model.weight, (1, 1)),
        "without graph": model.weight.argmax(),
    }


@idiom(marks=(pytest.mark.core,))
def copies_and_casts_of_parameters() -> Tensors:
    weight = nn.Parameter(torch.randn(4, 5))
    return [weight, weight.clone(), weight.to(torch.bfloat16), weight.double(), weight.contiguous()]


@idiom(marks=(pytest.mark.core,))
def writes_in_place_inside_the_graph() -> Tensors:
    weight = nn.Parameter(torch.randn(4, 5))
    hidden = weight * 2
    hidden.mul_(3)
    hidden[1:3, ::2].add_(1)
    hidden[0] = weight[3]
    hidden.t()[2].zero_()
    fresh = torch.zeros(4, 5)
    fresh.copy_(weight)
    return [weight, hidden, hidden.view(-1), fresh]


@idiom
def a_tensor_that_enters_the_graph_by_a_write() -> Tensors:
    weight = nn.Parameter(torch.randn(3))
    table = torch.zeros(5, 3)
    table[2] = weight
    table[4].add_(weight, alpha=2)
    return [weight, table, table[2]]


@idiom
def lists_of_parameters_at_once() -> dict[str, Any]:
    parameters = [nn.Parameter(torch.randn(n)) for n in (3, 5)]
    return {
        "parameters": parameters,
        "scaled": list(torch._foreach_mul(parameters, 2.0)),
        "norms": list(torch._foreach_norm(parameters)),
    }


@idiom
def writes_to_lists_inside_the_graph() -> Tensors:
    parameters = [nn.Parameter(torch.randn(n)) for n in (3, 5)]
    hidden = [parameter.clone() for parameter in parameters]
    torch._foreach_mul_(hidden, 2.0)
    torch._foreach_add_(hidden, parameters)
    return [*parameters, *hidden]


@idiom
def random_layers_inside_the_graph() -> Tensors:
    weight = nn.Parameter(torch.randn(20, 10))
    dropped = F.dropout(weight, 0.3)
    noisy = weight + torch.randn_like(weight) * 0.1
    return [weight, dropped, noisy, torch.randn(2)]


class Doubled(torch.autograd.Function):
    """A function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 2 + 0 * x


@idiom
def a_function_with_its_own_backward() -> Tensors:
    weight = nn.Parameter(torch.randn(4))
    return [weight, Doubled.apply(weight)]


@idiom
def gradients_taken_while_building() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    model(torch.randn(5, 4)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    return model


@idiom
def a_gradient_of_a_gradient() -> Tensors:
    weight = nn.Parameter(torch.randn(5))
    (first,) = torch.autograd.grad(weight.pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    return [weight, first, second]


@idiom
def a_gradient_kept_inside_the_graph() -> Tensors:
    weight = nn.Parameter(torch.randn(5))
    hidden = weight * 2
    hidden.retain_grad()
    hidden.sin().sum().backward()
    return [weight, hidden]


@idiom(expect_lazy=None, reads="the strides of a convolution's result depend on its library")
def what_cannot_be_recorded_has_its_graph_too() -> dict[str, Any]:
    layer = nn.Conv2d(3, 4, 3)
    return {"layer": layer, "features": layer(torch.randn(1, 3, 8, 8)).relu()}


@idiom
def vocoder_blocks_with_normalized_weights() -> nn.Module:
    layers = [
        nn.utils.weight_norm(nn.Conv1d(4, 8, 3)),
        nn.utils.weight_norm(nn.ConvTranspose1d(8, 4, 4, 2)),
        nn.utils.weight_norm(nn.Linear(4, 4), dim=None),
    ]
    model = nn.Sequential(*layers)
    for layer in layers[:2]:
        layer.weight.data.normal_(0.0, 0.01)
    return model


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()


@pytest.mark.core
@pytest.mark.parametrize("when", ["while lazy", "afterwards"])
def test_backward_through_a_recorded_graph_gives_the_gradients_of_eager(when: str) -> None:
    def build() -> tuple[nn.Module, torch.Tensor]:
        model = nn.Linear(6, 5)
        product = (model.weight @ model.weight.t()).softmax(-1)
        return model, F.layer_norm(product * model.bias, (5,)).pow(3)

    eager, lazy = build_both(build)
    assert dormant.is_lazy(lazy[1])
    if when == "afterwards":
        dormant.materialize([lazy[0], lazy[1]])
    for model, result in (eager, lazy):
        result.sum().backward()
        assert model.weight.grad is not None
    for name, parameter in eager[0].named_parameters():
        assert_same_bits(parameter.grad, lazy[0].get_parameter(name).grad, name)


def test_a_hook_inside_the_context_sees_the_gradient() -> None:
    def build() -> tuple[torch.Tensor, Tensors]:
        seen: Tensors = []
        weight = nn.Parameter(torch.randn(4))
        hidden = weight.exp()
        hidden.register_hook(lambda gradient: seen.append(gradient) or gradient * 2)
        weight.register_post_accumulate_grad_hook(lambda held: seen.append(held.grad.clone()))
        hidden.square().sum().backward()
        return weight, seen

    eager, lazy = build_both(build)
    assert len(lazy[1]) == 2
    for expected, got in zip((*eager[1], eager[0].grad), (*lazy[1], lazy[0].grad), strict=True):
        dormant.materialize(got)
        assert_same_bits(expected, got)


@pytest.mark.core
def test_a_value_that_backward_needs_and_that_was_overwritten_is_refused() -> None:
    with dormant.lazy_init():
        weight = nn.Parameter(torch.randn(4))
        hidden = weight * 2
        result = hidden.exp()
        result.add_(1)
    assert dormant.is_lazy(result)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_a_leaf_that_requires_grad_is_not_written_with_grad_mode_on() -> None:
    with dormant.lazy_init():
        weight = nn.Parameter(torch.randn(4))
        with pytest.raises(RuntimeError, match="leaf"):
            weight.mul_(2)
        with pytest.raises(RuntimeError, match="leaf"):
            torch._foreach_mul_([weight], 2.0)


def test_normalized_weights_train_as_in_eager() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))

    eager, lazy = build_both(build)
    assert not dormant._C.value_reads()
    dormant.materialize(lazy)
    for model in (eager, lazy):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    for name, parameter in eager.named_parameters():
        assert_same_bits(parameter, lazy.get_parameter(name), name)


def test_a_graph_that_is_gone_holds_no_storage() -> None:
    before = live_storages()
    with dormant.lazy_init():
        weight = nn.Parameter(torch.randn(4, 4))
        (weight @ weight).tanh().sum()
    assert dormant._C.live_storages() == before + 1
    del weight
    assert dormant._C.live_storages() == before


def test_mathematics_outside_the_context_still_runs_at_once() -> None:
    with dormant.lazy_init():
        weight = nn.Parameter(torch.randn(4))
    result = weight * 2
    assert not dormant.is_lazy(result)
    assert result.requires_grad
