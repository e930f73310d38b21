"""Objects stay the objects they were: parameters, ties, views, aliases, and what refers to them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits, storage_key
from idiom import Idiom, Idioms

idiom = Idioms()


class Tied(nn.Module):
    """A language model's usual tie, and a second name for a whole submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.block = nn.Linear(16, 16)
        self.again = self.block
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight


@idiom(marks=(pytest.mark.core,))
def a_tied_weight_stays_one_parameter() -> nn.Module:
    return Tied()


@idiom
def a_tie_made_before_the_weight_is_initialized_again() -> nn.Module:
    model = Tied()
    nn.init.normal_(model.head.weight, std=0.02)
    nn.init.zeros_(model.block.bias)
    return model


@idiom
def two_parameters_over_one_storage() -> nn.Module:
    model = nn.Module()
    flat = torch.randn(60)
    model.a = nn.Parameter(flat[:30].view(5, 6))
    model.b = nn.Parameter(flat[20:50])
    return model


@idiom
def detach_and_data_share_the_storage() -> dict[str, torch.Tensor]:
    weight = nn.Parameter(torch.randn(4, 5))
    return {"weight": weight, "detached": weight.detach(), "data": weight.data}


@idiom
def data_is_replaced_by_its_own_initialization() -> nn.Module:
    model = nn.Linear(7, 5)
    model.weight.data = nn.init.xavier_normal_(model.weight.data)
    model.bias.data = torch.full_like(model.bias.data, 0.25)
    return model


@idiom
def data_is_replaced_by_another_tensor_and_its_alias_keeps_the_old() -> dict[str, torch.Tensor]:
    weight = nn.Parameter(torch.randn(4, 5))
    old = weight.data
    weight.data = torch.rand(2, 3)
    old.mul_(2)
    return {"weight": weight, "old": old}


@idiom
def data_takes_the_transposed_view_of_itself() -> nn.Module:
    model = nn.Linear(7, 5)
    model.weight.data = model.weight.data.t()
    return model


@idiom
def parameters_swap_their_data() -> nn.Module:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    first, second = model[0].weight, model[1].weight
    first.data, second.data = second.data, first.data
    with torch.no_grad():
        first.add_(1)
    return model


@idiom
def parameters_swap_their_values_through_a_clone() -> nn.Module:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    with torch.no_grad():
        kept = model[0].weight.clone()
        model[0].weight.copy_(model[1].weight)
        model[1].weight.copy_(kept)
    return model


@idiom
def swap_tensors_exchanges_two_objects() -> nn.Module:
    model = nn.ModuleList([nn.Linear(3, 4), nn.Linear(5, 2)])
    torch.utils.swap_tensors(model[0].weight, model[1].weight)
    return model


@idiom
def a_parameter_is_replaced_by_one_without_grad() -> nn.Module:
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(model.weight, requires_grad=False)
    model.bias.requires_grad_(False)
    return model


@idiom
def a_parameter_is_deleted_and_comes_back_as_a_buffer() -> nn.Module:
    model = nn.Linear(4, 4)
    weight = model.weight
    del model.weight
    model.register_buffer("weight", weight.detach().clone(), persistent=False)
    return model


@idiom
def plain_attributes_lists_and_dicts_of_tensors() -> nn.Module:
    model = nn.Linear(4, 4)
    model.scale = torch.rand(4)
    model.tables = [torch.randn(3), {"deep": (torch.arange(5), torch.ones(2, 2))}]
    model.alias = model.weight
    model.bias_view = model.bias.detach()[1:3]
    return model


@idiom
def a_gradient_set_by_hand() -> nn.Module:
    model = nn.Linear(4, 4)
    model.weight.grad = torch.randn(4, 4)
    model.bias.grad = torch.zeros_like(model.bias)
    return model


@idiom
def deepcopy_inside_the_context_keeps_ties() -> nn.Module:
    model = Tied()
    return nn.ModuleList([model, copy.deepcopy(model)])


@idiom
def deepcopy_of_plain_views_keeps_one_storage() -> list[Any]:
    base = torch.randn(10)
    views = [base, base[2:5], base.view(2, 5)]
    return [views, copy.deepcopy(views)]


@idiom
def an_optimizer_with_state_built_inside() -> dict[str, Any]:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return {"model": model, "groups": optimizer.param_groups[0]["params"], "momentum": momentum}


@idiom(expect_lazy=0.85, reads="torch.tensor holds the count of averages, which exists already")
def an_exponential_moving_average_of_a_lazy_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    return average


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()


@pytest.mark.core
def test_references_taken_while_lazy_are_valid_afterwards() -> None:
    torch.manual_seed(0)
    expected = Tied()
    torch.manual_seed(0)
    with dormant.lazy_init():
        model = Tied()
    state = model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {name: id(parameter) for name, parameter in model.named_parameters()}
    calls = []
    model.embed.weight.register_hook(lambda gradient: calls.append(gradient.shape))
    dormant.materialize(model)
    assert {name: id(p) for name, p in model.named_parameters()} == names
    for name, tensor in expected.state_dict().items():
        assert_same_bits(tensor, state[name], name)
        assert storage_key(state[name]) == storage_key(model.state_dict()[name])
    reference = torch.optim.SGD(expected.parameters(), lr=0.1)
    for built, stepper in ((expected, reference), (model, optimizer)):
        built.head(built.block(built.embed(torch.arange(6)))).square().sum().backward()
        stepper.step()
    assert len(calls) == 1
    assert state["embed.weight"].eq(model.embed.weight).all()
    for name, parameter in expected.named_parameters():
        assert_same_bits(parameter, model.get_parameter(name), name)


def test_a_hook_registered_inside_the_context_runs_on_the_first_backward() -> None:
    calls = []
    with dormant.lazy_init():
        model = nn.Linear(3, 3)
        model.weight.register_hook(lambda gradient: calls.append(gradient))
    dormant.materialize(model)
    model(torch.ones(3)).sum().backward()
    assert len(calls) == 1


def test_an_alias_outside_the_module_drops_the_key_at_its_first_use() -> None:
    with dormant.lazy_init():
        model = nn.Linear(3, 3)
    alias = model.weight.detach()[1:]
    dormant.materialize(model)
    alias + 1
    assert not dormant.is_lazy(alias)
    assert not dormant._C.carries_key(alias)
    assert_same_bits(model.weight[1:], alias)


def test_materializing_a_view_brings_the_whole_storage_to_life() -> None:
    torch.manual_seed(0)
    expected = torch.randn(100)
    torch.manual_seed(0)
    with dormant.lazy_init():
        whole = torch.randn(100)
    part = whole[40:60]
    dormant.materialize(part)
    assert_same_bits(expected[40:60], part)
    assert not dormant.is_lazy(whole)
    assert_same_bits(expected, whole)


def test_materializing_again_changes_nothing() -> None:
    with dormant.lazy_init():
        model = nn.Linear(3, 3)
    dormant.materialize(model)
    before = model.weight.detach().clone()
    pointer = model.weight.data_ptr()
    with torch.no_grad():
        model.weight.add_(1)
    dormant.materialize(model)
    assert model.weight.data_ptr() == pointer
    assert_same_bits(before + 1, model.weight)


def test_weak_references_survive() -> None:
    import weakref

    with dormant.lazy_init():
        model = nn.Linear(3, 3)
    reference = weakref.ref(model.weight)
    dormant.materialize(model)
    assert reference() is model.weight
