"""Optimizers, averages and hooks that were set up on lazy parameters, beside eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import dormant
from compare import assert_same_bits, build_both


class Net(nn.Module):
    """Two layers with a tie between them, and a norm that counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)).relu())


def batch() -> torch.Tensor:
    return torch.linspace(-1, 1, 24).view(4, 6)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def assert_same(eager: nn.Module, lazy: nn.Module) -> None:
    dormant.materialize(lazy)
    left, right = eager.state_dict(), lazy.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert_same_bits(tensor, right[name], name)


Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD_foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "SGD_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True, weight_decay=0.1),
    "Adam_foreach": lambda p: torch.optim.Adam(p, foreach=True),
    "Adam_fused": lambda p: torch.optim.Adam(p, fused=True),
    "AdamW_tensor_rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "AdamW_fused": lambda p: torch.optim.AdamW(p, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1),
    "Adagrad_fused": lambda p: torch.optim.Adagrad(p, fused=True),
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=3),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": [q]} if q.dim() > 1 else {"params": [q], "weight_decay": 0.0} for q in p]
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_lazy_parameters_steps_as_in_eager(name: str) -> None:
    eager, lazy = build_both(Net)
    reference = OPTIMIZERS[name](eager.parameters())
    optimizer = OPTIMIZERS[name](lazy.parameters())
    assert dormant.is_lazy(lazy.first.weight)
    dormant.materialize(lazy)
    train(eager, reference)
    train(lazy, optimizer)
    assert_same(eager, lazy)
    expected, got = reference.state_dict()["state"], optimizer.state_dict()["state"]
    assert expected.keys() == got.keys()
    for key, state in expected.items():
        for entry, value in state.items():
            if isinstance(value, torch.Tensor):
                assert_same_bits(value, got[key][entry], f"{key}.{entry}")
                assert not dormant._C.carries_key(got[key][entry])


@pytest.mark.parametrize("name", ["SGD_foreach", "AdamW_fused", "Adagrad", "LBFGS"])
def test_training_brings_a_lazy_model_to_life_by_itself(name: str) -> None:
    eager, lazy = build_both(Net)
    train(eager, OPTIMIZERS[name](eager.parameters()))
    train(lazy, OPTIMIZERS[name](lazy.parameters()))
    assert not dormant.is_lazy(lazy.first.weight)
    assert_same(eager, lazy)


def test_an_optimizer_and_its_state_made_inside_the_context() -> None:
    def build() -> tuple[Net, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        return model, optimizer

    eager, reference = build()
    with dormant.lazy_init():
        lazy, optimizer = build()
    dormant.materialize([lazy, optimizer.state])
    train(eager, reference)
    train(lazy, optimizer)
    assert_same(eager, lazy)


def test_gradients_assigned_while_lazy_are_stepped_with() -> None:
    eager, lazy = build_both(Net)
    for model in (eager, lazy):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
    assert_same(eager, lazy)


@pytest.mark.parametrize("foreach", [True, False])
def test_gradients_of_a_lazy_model_are_clipped(foreach: bool) -> None:
    eager, lazy = build_both(Net)
    norms = []
    for model in (eager, lazy):
        model(batch()).square().sum().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1, foreach=foreach))
        torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert_same_bits(*norms)
    assert_same(eager, lazy)


AVERAGES: dict[str, Callable[[nn.Module], swa_utils.AveragedModel]] = {
    "equal": swa_utils.AveragedModel,
    "exponential": lambda m: swa_utils.AveragedModel(
        m, avg_fn=swa_utils.get_ema_avg_fn(0.9), use_buffers=True
    ),
    "exponential_at_once": lambda m: swa_utils.AveragedModel(
        m, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)
    ),
    "equal_at_once": lambda m: swa_utils.AveragedModel(
        m, multi_avg_fn=swa_utils.get_swa_multi_avg_fn()
    ),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_of_weights_that_starts_lazy(name: str, inside: bool) -> None:
    averages = []
    eager, lazy = build_both(Net)
    for model in (eager, lazy):
        if inside and model is lazy:
            with dormant.lazy_init():
                average = AVERAGES[name](model)
                average.update_parameters(model)
                average.update_parameters(model)
        else:
            average = AVERAGES[name](model)
            average.update_parameters(model)
            average.update_parameters(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps=1)
        average.update_parameters(model)
        averages.append(average)
    assert_same(*averages)


def test_hooks_on_lazy_parameters_run_in_the_order_of_eager() -> None:
    def watch(model: Net) -> list[Any]:
        seen: list[Any] = []
        model.first.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
        model.first.bias.register_post_accumulate_grad_hook(
            lambda parameter: seen.append(parameter.grad.clone())
        )
        model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model.register_full_backward_hook(lambda module, before, after: seen.append(after[0]))
        model(batch()).square().sum().backward()
        return seen

    eager, lazy = build_both(Net)
    expected, got = watch(eager), watch(lazy)
    assert len(expected) == len(got) == 4
    for left, right in zip(expected, got, strict=True):
        assert_same_bits(left, right)


def test_an_optimizer_that_steps_in_backward() -> None:
    eager, lazy = build_both(Net)
    for model in (eager, lazy):
        optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

        def step(parameter: torch.Tensor, optimizers: Any = optimizers) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        model(batch()).square().sum().backward()
    assert_same(eager, lazy)
