"""A call that was recorded before costs little, and one that differs is not taken for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.nn import functional

import dormant
from compare import compare

Call = Callable[[torch.Tensor], Any]

# Their Meta kernels are written in Python.
CALLS: dict[str, Call] = {
    "clamp": lambda x: x.clamp(0, 1),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "pow": lambda x: x**2,
    "tril": torch.tril,
    "masked_fill": lambda x: x.masked_fill(x > 0, -1.0),
    "floor_divide": lambda x: x // 2,
    "softplus": functional.softplus,
    "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
    "interpolate": lambda x: functional.interpolate(x[None], scale_factor=2, mode="linear"),
    "sqrt_": lambda x: x.sqrt_(),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_python_runs_inside_pytorch_for_a_call_that_was_recorded_before(name: str) -> None:
    torch_folder = str(Path(torch.__file__).parent)
    kernels = ("_refs", "_prims", "_decomp", "_meta_registrations", "_prims_common")
    ran: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(torch_folder) and any(k in file for k in kernels):
            ran.append(frame.f_code.co_name)

    def run() -> None:
        x = torch.randn(6, 6)
        ran.clear()
        sys.setprofile(note)
        try:
            CALLS[name](x)
        finally:
            sys.setprofile(None)

    with torch.device("meta"):
        run()
    assert ran, "its Meta kernel is not what this test looks for"
    with dormant.lazy_init():
        run()
        run()
    assert ran == []


def spread(*calls: Callable[[], Any]) -> list[Any]:
    """All results, and all again, so that each call comes once after every other."""
    return [call() for call in (*calls, *calls, *reversed(calls))]


def ones(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*sizes, dtype=dtype)


BUILDS: dict[str, Callable[[], Any]] = {
    "sizes": lambda: spread(*[lambda n=n: ones(n, 3).clamp(0, 1) for n in (1, 2, 3)]),
    "rank": lambda: spread(lambda: ones(6).cumsum(0), lambda: ones(6, 1).cumsum(0)),
    "strides": lambda: spread(lambda: ones(2, 3) ** 2, lambda: ones(3, 2).t() ** 2),
    "dtypes": lambda: spread(
        *[lambda d=d: ones(3, dtype=d).clamp(0) for d in (torch.half, torch.long, torch.float64)]
    ),
    "kinds of scalars": lambda: spread(
        lambda: ones(3, dtype=torch.long) ** 2,
        lambda: ones(3, dtype=torch.long) ** 2.0,
        lambda: torch.where(ones(3) > 0, ones(3, dtype=torch.long), 2),
        lambda: torch.where(ones(3) > 0, ones(3, dtype=torch.long), 2.5),
        lambda: torch.where(ones(3) > 0, ones(3, dtype=torch.bool), True),
    ),
    "values of scalars": lambda: spread(
        *[lambda k=k: torch.diag_embed(ones(3), offset=k) for k in (-2, 0, 1)]
    ),
    "flags": lambda: spread(
        lambda: ones(3, 4).sum(1),
        lambda: ones(3, 4).sum(1, keepdim=True),
        lambda: ones(3, 4).sum(0),
        lambda: ones(3, 4).sum((0, 1)),
        lambda: ones(3, 4).sum(1, dtype=torch.float64),
    ),
    "missing arguments": lambda: spread(
        lambda: functional.layer_norm(ones(3, 4), (4,)),
        lambda: functional.layer_norm(ones(3, 4), (4,), ones(4)),
        lambda: functional.layer_norm(ones(3, 4), (3, 4)),
        lambda: functional.layer_norm(ones(3, 4), (4,), ones(4), ones(4)),
    ),
    "lists": lambda: spread(
        lambda: torch.block_diag(ones(2, 2), ones(1, 1)),
        lambda: torch.block_diag(ones(1, 1), ones(2, 2)),
        lambda: torch.cat([ones(2), ones(3, dtype=torch.long)]),
        lambda: torch.cat([ones(2, dtype=torch.long), ones(3)]),
        lambda: torch.cat([ones(2), ones(2), ones(1, dtype=torch.long)]),
    ),
    "texts": lambda: spread(
        lambda: torch.div(ones(3, dtype=torch.long), 2, rounding_mode="floor"),
        lambda: torch.div(ones(3, dtype=torch.long), 2),
        lambda: torch.div(ones(3), 2, rounding_mode="trunc"),
    ),
    "a number and a tensor without dimensions": lambda: spread(
        lambda: torch.fmod(ones(3, dtype=torch.half), 2.0),
        lambda: torch.fmod(ones(3, dtype=torch.half), ones((), dtype=torch.float64)),
        lambda: torch.fmod(ones(3, dtype=torch.half), ones(1, dtype=torch.float64)),
    ),
}


@pytest.mark.parametrize("what", BUILDS)
def test_calls_that_differ_in(what: str) -> None:
    compare(BUILDS[what], min_tensors=6, min_bytes=0)


def with_default_dtype(dtype: torch.dtype) -> torch.Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return torch.atan2(torch.ones(3, dtype=torch.long), torch.ones(3, dtype=torch.long))
    finally:
        torch.set_default_dtype(before)


def test_calls_that_differ_in_the_default_dtype() -> None:
    compare(
        lambda: spread(
            *[lambda d=d: with_default_dtype(d) for d in (torch.float32, torch.float64)]
        ),
        min_tensors=6,
        min_bytes=0,
    )


def test_calls_beyond_the_number_that_is_kept() -> None:
    """Older ones are forgotten, and asked for again."""

    def build() -> list[torch.Tensor]:
        return [torch.ones(1 + i % 1100, 1).tril() for i in range(1300)]

    compare(build, min_tensors=1300, orders=("whole",))


def test_an_error_is_raised_each_time() -> None:
    with dormant.lazy_init():
        for _ in range(3):
            with pytest.raises(RuntimeError):
                torch.ones(3).clamp_(torch.ones(4))
            assert torch.ones(3).clamp(torch.ones(3)).shape == (3,)
