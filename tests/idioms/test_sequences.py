"""Generated programs: draws, views, in-place arithmetic, copies and frees in any sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compare import compare

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)
SHAPES = ((), (0,), (1,), (5,), (16,), (33,), (4, 5), (17, 3), (2, 3, 4), (640,))


@dataclass(frozen=True)
class Step:
    """One step of a program; the numbers choose operands among the tensors alive by then."""

    kind: str
    left: int
    right: int
    number: int

    def __repr__(self) -> str:
        return f"{self.kind}({self.left}, {self.right}, {self.number})"


def make(step: Step) -> torch.Tensor:
    shape, dtype = SHAPES[step.left % len(SHAPES)], DTYPES[step.right % len(DTYPES)]
    if step.number % 3 == 0:
        return torch.zeros(shape, dtype=dtype)
    if dtype is torch.int64:
        return torch.randint(-50, 50, shape)
    return (torch.randn if step.number % 3 == 1 else torch.rand)(shape, dtype=dtype)


def view(tensor: torch.Tensor, number: int) -> torch.Tensor:
    if tensor.dim() == 0:
        return tensor.view(1)
    size = tensor.shape[-1]
    return (
        lambda: tensor.transpose(0, -1),
        lambda: tensor[..., ::2],
        lambda: tensor[size // 3 :] if tensor.dim() == 1 else tensor[1:],
        lambda: tensor.narrow(-1, size // 2, size - size // 2),
        lambda: tensor.unsqueeze(0).expand(2, *tensor.shape),
        lambda: tensor.detach(),
        lambda: tensor.flatten(),  # a copy where the tensor is not contiguous
    )[number % 7]()


def overlaps(tensor: torch.Tensor) -> bool:
    return any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def draw(tensor: torch.Tensor, number: int) -> None:
    if tensor.dtype is torch.int64:
        tensor.random_(-100, 100) if number % 2 else tensor.bernoulli_(0.5)
        return
    (
        lambda: tensor.normal_(0.5, 2),
        lambda: tensor.uniform_(-1, 3),
        lambda: tensor.bernoulli_(0.3),
        lambda: tensor.exponential_(2),
        lambda: torch.nn.init.trunc_normal_(tensor, std=0.1),
        lambda: tensor.log_normal_(0, 0.5),
        lambda: tensor.random_(0, 9),
    )[number % 7]()


def arithmetic(tensor: torch.Tensor, number: int) -> None:
    (
        lambda: tensor.add_(number),
        lambda: tensor.mul_(-2),
        lambda: tensor.clamp_(-3, 4),
        lambda: tensor.zero_(),
        lambda: tensor.fill_(number),
        lambda: tensor.neg_(),
        lambda: tensor.abs_(),
        lambda: tensor.masked_fill_(tensor > 1, 7),
    )[number % 8]()


def combine(left: torch.Tensor, right: torch.Tensor, number: int) -> torch.Tensor:
    flat, other = left.reshape(-1), right.reshape(-1)
    size = min(flat.numel(), other.numel())
    return (
        lambda: torch.cat([flat, other.to(left.dtype)]),
        lambda: flat[:size] + other[:size],
        lambda: torch.where(flat[:size] > 0, flat[:size], other[:size].to(left.dtype)),
        lambda: left.clone(),
        lambda: left.to(right.dtype),
        lambda: left.sum(),
        lambda: flat.cumsum(0),
        lambda: flat.flip(0),
    )[number % 8]()


def run(program: list[Step]) -> dict[str, Any]:
    """Interprets a program; every failure would be the same in eager."""
    alive: list[torch.Tensor] = [torch.randn(20), torch.zeros(3, 4)]
    numbers: list[float] = []
    for step in program:
        left, right = alive[step.left % len(alive)], alive[step.right % len(alive)]
        if step.kind == "make":
            alive.append(make(step))
        elif step.kind == "view":
            alive.append(view(left, step.number))
        elif step.kind == "draw" and not overlaps(left):
            draw(left, step.number)
        elif step.kind == "arithmetic" and not overlaps(left):
            arithmetic(left, step.number)
        elif step.kind == "combine":
            alive.append(combine(left, right, step.number))
        elif step.kind == "copy" and not overlaps(left):
            flat = right.reshape(-1)
            if flat.numel() >= left.numel():
                left.copy_(flat[: left.numel()].view(left.shape).clone())
        elif step.kind == "free" and len(alive) > 1:
            del alive[step.left % len(alive)]
        elif step.kind == "seed":
            torch.manual_seed(step.number)
        elif step.kind == "read" and left.numel():
            numbers.append(left.reshape(-1)[step.number % left.numel()].item())
    return {"alive": alive, "numbers": numbers}


KINDS = ("make", "view", "view", "draw", "draw", "arithmetic", "combine", "copy", "free", "seed")


def programs(*kinds: str) -> st.SearchStrategy[list[Step]]:
    numbers = st.integers(0, 40)
    step = st.builds(Step, st.sampled_from(kinds), numbers, numbers, numbers)
    return st.lists(step, min_size=6, max_size=40)


quick = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.core
@settings(quick, max_examples=80)
@given(program=programs(*KINDS), shuffle=st.integers(0, 1000))
def test_a_program_without_reads(program: list[Step], shuffle: int) -> None:
    # near bounds of trunc_normal_ of a short tensor have to look at what was drawn
    compare(lambda: run(program), shuffle=shuffle, expect_lazy=None, min_bytes=0)


@settings(quick, max_examples=40)
@given(program=programs(*KINDS, "read", "read"), shuffle=st.integers(0, 1000))
def test_a_program_that_reads_values(program: list[Step], shuffle: int) -> None:
    compare(lambda: run(program), shuffle=shuffle, expect_lazy=None, min_bytes=0)


@settings(quick, max_examples=40)
@given(program=programs("make", "view", "draw", "arithmetic", "combine", "copy"))
def test_nothing_is_read_early_without_a_reason(program: list[Step]) -> None:
    """Draws by round, views, arithmetic and copies alone leave every byte lazy."""
    steps = [step for step in program if step.kind != "draw" or step.number % 7 != 4]
    compare(lambda: run(steps), orders=("shuffled",), min_bytes=0)
