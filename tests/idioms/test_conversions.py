"""Conversions of whole lazy modules, and PyTorch's switches for them, beside eager."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits, build_both, compare, storage_key
from reachable import holdings


class Net(nn.Module):
    """A tie, a buffer that is not saved, integers, four dimensions, and a view as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight
        self.convolution = nn.Conv2d(2, 3, 3)
        self.register_buffer("table", torch.arange(6).float().cos(), persistent=False)
        self.register_buffer("order", torch.arange(6))
        self.rows = self.embed.weight.detach()[2:4]


def assert_same(eager: Any, lazy: Any) -> None:
    """Materializes `lazy` and compares names, ties, strides and bits."""
    left, right = holdings(eager).tensors, holdings(lazy).tensors
    dormant.materialize(list(right.values()))
    assert list(left) == list(right)
    first: dict[int, str] = {}
    other: dict[int, str] = {}
    for name, tensor in left.items():
        assert_same_bits(tensor, right[name], name)
        assert tensor.requires_grad == right[name].requires_grad, name
        assert tensor.stride() == right[name].stride(), name
        assert first.setdefault(storage_key(tensor), name) == other.setdefault(
            storage_key(right[name]), name
        )


CONVERSIONS: dict[str, Callable[[nn.Module], Any]] = {
    "double_float_bfloat16": lambda m: m.double().float().bfloat16(),
    "type_by_name": lambda m: m.type("torch.DoubleTensor"),
    "type_by_class": lambda m: m.type(torch.HalfTensor),
    "to_of_a_tensor": lambda m: m.to(torch.zeros(1, dtype=torch.float64)),
    "complex": lambda m: m.to(torch.complex64),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "cpu": lambda m: m.cpu(),
    "meta_and_back": lambda m: (
        m.to("meta")
        .to_empty(device="cpu")
        .apply(
            lambda x: (
                [nn.init.ones_(p) for p in x.parameters(recurse=False)]
                + [b.zero_() for b in x.buffers(recurse=False)]
            )
        )
    ),
    "apply": lambda m: m.apply(
        lambda x: nn.init.constant_(x.weight, 2) if hasattr(x, "weight") else None
    ),
    "requires_grad_and_train": lambda m: m.requires_grad_(False).eval(),
    "shallow_copy": copy.copy,
    "all_names": lambda m: dict(m.named_parameters(remove_duplicate=False)),
    "state_dict_with_variables": lambda m: m.state_dict(keep_vars=True),
    "load_its_own_state": lambda m: m.load_state_dict(m.state_dict()) and m,
    "assign_its_own_state": lambda m: m.load_state_dict(m.state_dict(), assign=True) and m,
    "assign_a_cast_state": lambda m: (
        m.load_state_dict({k: v.half() for k, v in m.state_dict().items()}, assign=True) and m
    ),
    "gradients_assigned": lambda m: [
        m,
        [setattr(p, "grad", torch.zeros_like(p)) for p in m.parameters()],
    ],
    "gradients_cast_along": lambda m: [
        setattr(m.norm.weight, "grad", m.norm.weight.detach().clone()),
        m.double(),
    ],
    "deepcopy_then_half": lambda m: [m, copy.deepcopy(m).half()],
    "fewer_layers": lambda m: nn.Sequential(*list(m.children())[:2]),
}


@contextmanager
def future(name: str | None) -> Iterator[None]:
    """One of torch.__future__'s switches on."""
    if name is None:
        yield
        return
    switch = getattr(torch.__future__, f"set_{name}")
    switch(True)
    try:
        yield
    finally:
        switch(False)


SWITCHES = [None, "overwrite_module_params_on_conversion", "swap_module_params_on_conversion"]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversion_of_a_lazy_module(name: str, switch: str | None) -> None:
    eager, lazy = build_both(Net)
    outcomes = []
    with future(switch), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in (eager, lazy):
            try:
                outcomes.append(CONVERSIONS[name](model))
            except RuntimeError as error:  # swapping refuses what something else refers to
                outcomes.append(str(error))
    if isinstance(outcomes[0], str):
        assert outcomes[0] == outcomes[1]
        outcomes = [eager, lazy]
    assert any(dormant.is_lazy(t) for t in holdings(outcomes[1]).tensors.values())
    assert_same(*outcomes)


@pytest.mark.parametrize("switch", SWITCHES)
def test_conversion_inside_the_context(switch: str | None) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        return model.to(torch.bfloat16).to(torch.float64)

    with future(switch):
        compare(build)


def test_memory_that_is_shared_among_processes_has_the_values_of_eager() -> None:
    eager, lazy = build_both(Net)
    eager.share_memory()
    lazy.share_memory()
    assert lazy.embed.weight.is_shared()
    assert lazy.head.weight is lazy.embed.weight
    assert_same(eager, lazy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.parametrize("move", ["cuda", "to", "tensor"])
def test_a_gpu_that_is_not_there_is_the_error_of_eager_and_changes_nothing(move: str) -> None:
    eager, lazy = build_both(Net)
    errors = []
    for model in (eager, lazy):
        with pytest.raises((RuntimeError, AssertionError)) as caught:
            if move == "cuda":
                model.cuda()
            elif move == "to":
                model.to("cuda")
            else:
                model.table.cuda()
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    assert dormant.is_lazy(lazy.embed.weight)
    assert_same(eager, lazy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_the_context_of_a_gpu_that_is_not_there_is_the_error_of_eager() -> None:
    def build() -> nn.Module:
        with torch.device("cuda"):
            return nn.Linear(2, 2)

    with pytest.raises((RuntimeError, AssertionError)) as expected:
        build()
    with dormant.lazy_init(), pytest.raises(type(expected.value)) as got:
        build()
    assert str(got.value) == str(expected.value)
    assert not dormant._C.recording()


def test_the_inner_of_two_device_contexts_decides() -> None:
    def build() -> list[torch.Tensor]:
        with torch.device("meta"):
            outer = torch.randn(2)
            with torch.device("cpu"):
                inner = torch.randn(3)
        return [outer, inner]

    compare(build)
    with torch.device("meta"), dormant.lazy_init():
        assert torch.randn(2).is_meta
    with torch.device("meta"), dormant.lazy_init(device="cpu"):
        assert dormant.is_lazy(torch.randn(2))


def test_a_default_device_set_before_the_context_is_kept() -> None:
    torch.set_default_device("meta")
    try:
        with dormant.lazy_init():
            made = torch.randn(2)
            on_cpu = torch.randn(2, device="cpu")
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)
    assert made.is_meta
    assert dormant.is_lazy(on_cpu)


def test_meta_parameters_replaced_one_by_one_inside_the_context() -> None:
    def build() -> nn.Module:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        for layer in model:
            for name, parameter in list(layer.named_parameters()):
                fresh = torch.empty_like(parameter, device="cpu").normal_(std=0.1)
                setattr(layer, name, nn.Parameter(fresh))
        return model

    compare(build)


def test_a_module_pickled_twice_is_two_modules() -> None:
    eager, lazy = build_both(Net)
    data = pickle.dumps(lazy)
    first, second = pickle.loads(data), pickle.loads(data)
    assert storage_key(first.embed.weight) != storage_key(second.embed.weight)
    with torch.no_grad():
        first.embed.weight.zero_()
    assert_same(pickle.loads(pickle.dumps(eager)), second)  # pickle does not keep views
    assert_same(eager, lazy)


def test_fused_convolution_and_norm_of_a_lazy_model() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()

    eager, lazy = build_both(build)
    fuse = nn.utils.fusion.fuse_conv_bn_eval
    fused = [fuse(model[0], model[1]) for model in (eager, lazy)]
    assert_same(*fused)
