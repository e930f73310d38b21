"""The oracle of all other tests notices each kind of difference it promises to notice."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits, compare


def lazily() -> bool:
    return bool(dormant._C.recording())


def named(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(3, 4).fill_(1), "b": torch.ones(2, 3).mul_(value)}


def bumped() -> list[torch.Tensor]:
    tensor = torch.ones(2)
    return [tensor.mul_(1) if lazily() else tensor]


def tied() -> list[torch.Tensor]:
    tensor = torch.ones(2)
    return [tensor, tensor.clone() if lazily() else tensor]


def aliased() -> list[torch.Tensor]:
    tensor = torch.ones(4)
    return [tensor, tensor[:2].clone() if lazily() else tensor[:2]]


def beside_the_view() -> list[torch.Tensor]:
    tensor = torch.zeros(4)
    tensor[3] = 2.0 if lazily() else 1.0
    return [tensor[:2]]


def nan_payload() -> list[torch.Tensor]:
    return [torch.full((2,), 0x7FC00001 if lazily() else 0x7FC00002).int().view(torch.float32)]


def generator_ahead() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    torch.rand(2 if lazily() else 1, generator=generator)
    return [torch.ones(1), generator]


def number_drawn() -> list[Any]:
    return [torch.ones(1), 2.0 if lazily() else 1.0]


def numpy_ahead() -> torch.Tensor:
    numpy.random.rand(2 if lazily() else 1)
    return torch.ones(1)


def python_ahead() -> torch.Tensor:
    for _ in range(2 if lazily() else 1):
        random.random()
    return torch.ones(1)


def torch_ahead() -> torch.Tensor:
    torch.rand(2 if lazily() else 1)
    return torch.ones(1)


def real_early() -> list[torch.Tensor]:
    tensor = torch.ones(3)
    tensor.sum().item()
    return [tensor, torch.zeros(3)]


def strides() -> torch.Tensor:
    return torch.ones(3, 3).t() if lazily() else torch.ones(3, 3)


def unwrapped() -> torch.Tensor:
    return torch.ones(2) if lazily() else nn.Parameter(torch.ones(2), requires_grad=False)


DIFFERENCES: dict[str, tuple[Callable[[], Any], str]] = {
    "a value": (
        lambda: named(3.0 if lazily() else 2.0),
        r"b differs at \(0, 0\): eager 2.0 .*3.0",
    ),
    "a NaN payload": (nan_payload, r"\[0\] differs at \(0,\)"),
    "a value outside the view": (beside_the_view, r"the storage of \[0\] differs"),
    "a version": (bumped, "_version is 0 in eager, 1 lazily"),
    "a tie": (tied, r"\[1\] has the object of \[0\] in eager"),
    "an alias": (aliased, r"\[1\]: "),
    "strides": (strides, r"strides is \(3, 1\) in eager, \(1, 3\) lazily"),
    "a dtype": (lambda: torch.ones(2, dtype=torch.half if lazily() else None), "dtype is"),
    "requires_grad": (lambda: nn.Parameter(torch.ones(2), not lazily()), "requires_grad is True"),
    "a class": (unwrapped, "class is Parameter in eager, Tensor lazily"),
    "a name": (lambda: {"y" if lazily() else "x": torch.ones(1)}, "names of tensors differ"),
    "torch's generator": (torch_ahead, "global generator of torch differs"),
    "numpy's generator": (numpy_ahead, "global generator of numpy differs"),
    "python's generator": (python_ahead, "global generator of random differs"),
    "a private generator": (generator_ahead, r"the state of generator \[1\] differs"),
    "a number": (number_drawn, r"\[1\] is 1.0 in eager, 2.0 lazily"),
    "a tensor that was real early": (real_early, "lazy rate 0.500000 is below 1.0"),
    "nothing compared": (lambda: torch.empty(0), "compared 1 tensors and 0 bytes"),
    "too few tensors": (lambda: [1.0], "compared 0 tensors"),
}


@pytest.mark.core
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_compare_notices(difference: str) -> None:
    build, message = DIFFERENCES[difference]
    with pytest.raises(AssertionError, match=message) as caught:
        compare(build)
    assert "(seed 0, order 'shuffled'" in str(caught.value)


def test_compare_refuses_an_exclusion_that_does_not_exist() -> None:
    with pytest.raises(AssertionError, match=r"excluded names that do not exist: \['b'\]"):
        compare(lambda: {"a": torch.ones(1)}, unwritten={"b": "never written"})


def test_an_excluded_tensor_is_not_compared_but_others_are() -> None:
    def build() -> dict[str, torch.Tensor]:
        return {"a": torch.full((2,), 1.0 + lazily()), "b": torch.ones(2)}

    counts = compare(build, unwritten={"a": "differs on purpose"})
    assert (counts.tensors, counts.nbytes, counts.lazy_rate) == (2, 16, 1.0)


def test_the_sign_of_zero_counts() -> None:
    with pytest.raises(AssertionError, match="differs"):
        assert_same_bits(torch.zeros(1), -torch.zeros(1))
