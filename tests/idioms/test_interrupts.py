"""What stops a program is not taken for an operator's refusal of its arguments."""

from __future__ import annotations

import gc
import itertools
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
import torch

import dormant

columns = itertools.count(5)


@pytest.fixture(scope="module")
def meta_kernel() -> Iterator[list[BaseException]]:
    """Exceptions that the Meta kernel of aten::logcumsumexp raises, the last one first."""
    left: list[BaseException] = []

    def meta(x: torch.Tensor, dim: int) -> torch.Tensor:
        if left:
            raise left.pop()
        return torch.empty_like(x)

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("logcumsumexp", meta, "Meta", allow_override=True)
        yield left


def test_an_interrupt_in_a_meta_kernel_is_seen(meta_kernel: list[BaseException]) -> None:
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError):
        interrupt = kind("stop")
        with dormant.lazy_init():
            x = torch.ones(3, next(columns))  # what is known of a size is not asked again
            meta_kernel.append(interrupt)
            with pytest.raises(kind) as caught:
                torch.logcumsumexp(x, 0)
            assert caught.value is interrupt
            assert dormant.is_lazy(x)
            assert dormant.is_lazy(torch.logcumsumexp(x, 0))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, NotImplementedError, AssertionError])
def test_a_refusal_of_a_meta_kernel_is_left_to_the_real_operator(
    kind: type[Exception], meta_kernel: list[BaseException]
) -> None:
    with dormant.lazy_init():
        meta_kernel.append(kind("no"))
        result = torch.logcumsumexp(torch.ones(3, next(columns)), 0)
    assert not meta_kernel
    assert torch.equal(result, torch.ones_like(result).logcumsumexp(0))


def test_a_signal_that_arrives_while_meta_kernels_run_is_seen() -> None:
    class Alarm(BaseException):
        pass

    sent = 0

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal sent
        sent += 1
        raise Alarm

    seen = 0
    before = signal.signal(signal.SIGALRM, ring)
    gc.disable()  # Python ignores what is raised in a callback of a collection (hypothesis has one)
    try:
        with dormant.lazy_init():
            for size in range(3, 2000):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0003)
                    for width in range(20, 40):
                        torch.logcumsumexp(torch.empty(size, width), 0)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm:
                    seen += 1
                if sent == 10:
                    break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert sent == 10
    assert seen == sent
