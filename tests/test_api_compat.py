"""`LazyInitContext`: the usage ColossalAI's users know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import LazyInitContext

pytestmark = pytest.mark.core


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.norm = nn.BatchNorm1d(32)
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))


def test_the_module_is_materialized_in_place_and_returned() -> None:
    torch.manual_seed(0)
    eager = Model()
    torch.manual_seed(0)
    context = LazyInitContext()
    with context:
        model = Model()
    assert dormant.is_lazy(model)
    weight = model.linear.weight
    assert context.materialize(model) is model
    assert model.linear.weight is weight
    assert len(eager.state_dict()) == 8
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[name], name)


def test_verbose_prints_the_lazy_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with LazyInitContext():
        model = Model()
    LazyInitContext.materialize(model, verbose=True)
    numel = 32 * 32 + 5 * 32 + 1 + 2
    assert capsys.readouterr().out.splitlines() == [
        "Param lazy rate: 4/5",
        "Buffer lazy rate: 2/3",  # BatchNorm's counter is made by torch.tensor
        f"Non lazy numel: 3 (0.000 M), ratio: {3 / numel * 100}%",
    ]


def test_it_prints_nothing_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with LazyInitContext():
        model = Model()
    LazyInitContext.materialize(model)
    assert capsys.readouterr().out == ""


def test_the_default_device_is_used() -> None:
    with LazyInitContext(default_device="meta"):
        assert torch.empty(1).device.type == "meta"


def test_another_tensor_class_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor_cls"):
        LazyInitContext(tensor_cls=torch.Tensor)
