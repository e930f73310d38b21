"""`lazy_init`: where it applies, how it nests, and that it leaves no trace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C

pytestmark = pytest.mark.core


def test_factories_are_lazy_inside_and_real_outside() -> None:
    with dormant.lazy_init():
        inside = torch.randn(3)
    outside = torch.randn(3)
    assert dormant.is_lazy(inside)
    assert not dormant.is_lazy(outside)


def test_an_inner_context_ends_without_ending_the_outer() -> None:
    with dormant.lazy_init():
        with dormant.lazy_init():
            assert _C.recording()
        assert _C.recording()
        assert dormant.is_lazy(torch.zeros(2))
    assert not _C.recording()


def test_one_context_object_can_be_entered_inside_itself_and_again() -> None:
    context = dormant.lazy_init()
    with context:
        with context:
            pass
        assert _C.recording()
    with context:
        assert _C.recording()
    assert not _C.recording()


def test_an_exception_restores_recording_dtype_and_device() -> None:
    dtype = torch.get_default_dtype()
    with (
        pytest.raises(ZeroDivisionError),
        dormant.lazy_init(device="meta", dtype=torch.float64),
    ):
        assert torch.empty(1).device.type == "meta"
        1 / 0  # noqa: B018
    assert not _C.recording()
    assert torch.get_default_dtype() is dtype
    assert torch.empty(1).device.type == "cpu"


def test_a_bad_dtype_is_refused_before_anything_is_recorded() -> None:
    with pytest.raises(TypeError, match=r"expected one like torch.bfloat16, got torch.int32"):
        dormant.lazy_init(dtype=torch.int32)
    with pytest.raises(TypeError, match="got 'float32'"):
        dormant.lazy_init(dtype="float32")  # type: ignore[arg-type]
    assert not _C.recording()


def test_dtype_is_the_default_inside_only() -> None:
    with dormant.lazy_init(dtype=torch.bfloat16):
        layer = nn.Linear(4, 4)
    assert layer.weight.dtype is torch.bfloat16
    assert torch.get_default_dtype() is torch.float32
    torch.manual_seed(0)
    with dormant.lazy_init(dtype=torch.bfloat16):
        lazy = nn.Linear(4, 4).weight
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    eager = nn.Linear(4, 4).weight
    torch.set_default_dtype(torch.float32)
    dormant.materialize(lazy)
    assert_same_bits(eager, lazy)


def test_meta_factories_are_left_to_pytorch() -> None:
    with dormant.lazy_init():
        explicit = torch.empty(3, device="meta")
    with dormant.lazy_init(device="meta"):
        default = nn.Linear(2, 2).weight
    for tensor in (explicit, default):
        assert tensor.device.type == "meta"
        assert not dormant.is_lazy(tensor)


def test_the_default_device_applies_inside_another_one() -> None:
    with torch.device("meta"), dormant.lazy_init(device="cpu"):
        assert dormant.is_lazy(torch.empty(2))
    with torch.device("meta"):
        assert torch.empty(2).device.type == "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"lazy_init: .* sees no CUDA GPU.*Leave out device"):
        dormant.lazy_init(device="cuda")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("nonsense", ValueError),
        ("cpu:x", ValueError),
        (-7, ValueError),
        ("fpga", ValueError),
        (1.5, TypeError),
    ],
)
def test_a_wrong_device_is_the_same_mistake_everywhere(
    device: Any, expected: type[Exception]
) -> None:
    layer = nn.Linear(2, 2)
    operations: list[Callable[[], object]] = [
        lambda: dormant.lazy_init(device=device),
        lambda: dormant.LazyInitContext(default_device=device),
        lambda: dormant.materialize(layer, device=device),
        lambda: dormant.load(layer, layer.state_dict(), device=device),
    ]
    for operation in operations:
        with pytest.raises(expected) as caught:
            operation()
        assert type(caught.value) is expected
    assert not _C.recording()


def test_as_a_decorator_it_records_each_call() -> None:
    @dormant.lazy_init(dtype=torch.float64)
    def build(width: int, *, bias: bool) -> nn.Linear:
        """Builds."""
        return nn.Linear(width, width, bias=bias)

    for _ in range(2):
        layer = build(3, bias=False)
        assert dormant.is_lazy(layer)
        assert layer.weight.dtype is torch.float64
    assert not _C.recording()
    assert (build.__name__, build.__doc__) == ("build", "Builds.")


def test_as_a_decorator_it_needs_no_parentheses() -> None:
    class Builder:
        @dormant.lazy_init
        def build(self, width: int) -> nn.Linear:
            """Builds."""
            return nn.Linear(width, width)

    @dormant.lazy_init
    def build() -> torch.Tensor:
        return torch.ones(2)

    assert dormant.is_lazy(build())
    assert dormant.is_lazy(Builder().build(3))
    assert Builder.build.__doc__ == "Builds."
    assert not _C.recording()


def test_a_device_is_no_function_to_decorate() -> None:
    with dormant.lazy_init(torch.device("cpu")):
        assert dormant.is_lazy(torch.ones(2))


def test_a_recursive_decorated_function_returns_to_its_caller_recording() -> None:
    states = []

    @dormant.lazy_init()
    def build(depth: int) -> None:
        if depth:
            build(depth - 1)
        states.append(_C.recording())

    build(2)
    assert states == [True, True, True]
    assert not _C.recording()


def test_what_cannot_be_decorated_is_refused() -> None:
    def generator() -> object:
        yield

    async def coroutine() -> None: ...

    for function in (generator, coroutine):
        with pytest.raises(TypeError, match="outside the context"):
            dormant.lazy_init()(function)
        with pytest.raises(TypeError, match="outside the context"):
            dormant.lazy_init(function)
    for decorate in (dormant.lazy_init(), dormant.lazy_init):
        with pytest.raises(TypeError, match="no longer be a class"):
            decorate(nn.Linear)


@pytest.mark.threads
def test_it_applies_to_the_calling_thread_only() -> None:
    entered, seen = threading.Event(), threading.Event()
    results = {}

    def other() -> None:
        entered.wait(30)
        results["recording"] = _C.recording()
        results["lazy"] = dormant.is_lazy(torch.zeros(4))
        seen.set()

    thread = threading.Thread(target=other)
    thread.start()
    with dormant.lazy_init():
        entered.set()
        assert seen.wait(30)
    thread.join()
    assert results == {"recording": False, "lazy": False}


@pytest.mark.threads
def test_threads_that_share_one_context_object_do_not_disturb_each_other() -> None:
    context = dormant.lazy_init()
    barrier = threading.Barrier(4)
    results = []

    def build() -> None:
        barrier.wait(30)
        for _ in range(20):
            with context:
                inside = dormant.is_lazy(torch.zeros(3))
            results.append((inside, _C.recording()))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(True, False)] * 80


def test_value_reads_start_anew_with_each_outermost_context() -> None:
    with dormant.lazy_init():
        torch.ones(5).sum().item()
        with dormant.lazy_init():
            pass
        first = _C.value_reads()
    with dormant.lazy_init():
        second = _C.value_reads()
    assert first
    assert second == {}


def test_contexts_that_end_out_of_order_end_all_the_same() -> None:
    first = dormant.lazy_init(dtype=torch.bfloat16)
    second = dormant.lazy_init(dtype=torch.float64)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _C.recording()
    assert torch.get_default_dtype() is torch.float64
    second.__exit__(None, None, None)
    assert not _C.recording()
    assert torch.get_default_dtype() is torch.float32


def test_tasks_that_take_turns_leave_no_trace() -> None:
    async def build(width: int) -> nn.Linear:
        generator = torch.Generator().manual_seed(width)
        with dormant.lazy_init(dtype=torch.float64):
            layer = nn.Linear(width, width)
            await asyncio.sleep(0.001 * (8 - width))
            nn.init.normal_(layer.weight, generator=generator)
            await asyncio.sleep(0)
            nn.init.zeros_(layer.bias)
        return layer

    async def together() -> list[nn.Linear]:
        return await asyncio.gather(*(build(width) for width in range(1, 8)))

    layers = asyncio.run(together())
    assert not _C.recording()
    assert torch.get_default_dtype() is torch.float32
    for width, layer in enumerate(layers, 1):
        assert dormant.is_lazy(layer.weight)
        dormant.materialize(layer)
        expected = torch.empty(width, width, dtype=torch.float64)
        expected.normal_(generator=torch.Generator().manual_seed(width))
        assert_same_bits(expected, layer.weight)


@pytest.mark.parametrize("end", ["exhausted", "closed", "thrown into", "forgotten"])
def test_a_generator_suspended_inside_the_context(end: str) -> None:
    def layers() -> Iterator[nn.Linear]:
        with dormant.lazy_init(dtype=torch.float64):
            for width in (1, 2):
                yield nn.Linear(width, width)

    suspended = layers()
    assert dormant.is_lazy(next(suspended).weight)
    if end == "exhausted":
        assert len(list(suspended)) == 1
    elif end == "closed":
        suspended.close()
    elif end == "thrown into":
        with pytest.raises(KeyError):
            suspended.throw(KeyError)
    del suspended
    assert not _C.recording()
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.threads
def test_threads_with_contexts_of_other_dtypes_restore_the_dtype() -> None:
    inside, leave = threading.Barrier(2), threading.Event()

    def hold() -> None:
        with dormant.lazy_init(dtype=torch.float64):
            inside.wait(30)
            leave.wait(30)

    thread = threading.Thread(target=hold)
    with dormant.lazy_init(dtype=torch.bfloat16):
        thread.start()
        inside.wait(30)
    assert torch.get_default_dtype() is torch.float64
    leave.set()
    thread.join()
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.threads
def test_a_context_left_by_another_thread_is_an_error_that_says_so() -> None:
    context = dormant.lazy_init()
    caught: list[BaseException] = []

    def leave() -> None:
        try:
            context.__exit__(None, None, None)
        except RuntimeError as error:
            caught.append(error)

    with context:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert _C.recording()
    assert "thread that did not enter it" in str(caught[0])
    assert not _C.recording()
