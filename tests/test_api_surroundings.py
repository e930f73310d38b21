"""`materialize` and `save` called from anywhere: callbacks, modes, destructors, forks."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dormant
from child import in_child
from compare import assert_same_bits


class Mixed(nn.Module):
    """Linear layers, which are made in tiles, and an orthogonal weight, which is replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(200, 200) for _ in range(4)])
        self.square = nn.Parameter(torch.empty(40, 40))
        nn.init.orthogonal_(self.square)


def build() -> Mixed:
    torch.manual_seed(3)
    return Mixed()


def build_lazily() -> Mixed:
    with dormant.lazy_init():
        return build()


def assert_as_eager(model: nn.Module) -> None:
    for (name, expected), got in zip(
        build().state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert not dormant.is_lazy(got), name
        assert_same_bits(expected, got, name)


def read_by_operators(model: Mixed) -> None:
    expected = build()
    assert_same_bits(expected.layers[2].weight.sum(), model.layers[2].weight.sum())
    assert_same_bits(expected.square.sum(), model.square.sum())


def materialize_all(model: Mixed) -> None:
    dormant.materialize(model)


def materialize_another(model: Mixed) -> None:
    other = build_lazily()
    dormant.materialize(other)
    assert_as_eager(other)


def compute_gradients(model: Mixed) -> None:
    weight = torch.ones(3, requires_grad=True)
    with torch.enable_grad():
        (weight * 2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]


def make_tensors(model: Mixed) -> None:
    assert not dormant.is_lazy(torch.ones(3))
    with dormant.lazy_init():
        assert dormant.is_lazy(torch.ones(3))


CALLBACKS = [
    read_by_operators,
    materialize_all,
    materialize_another,
    compute_gradients,
    make_tensors,
]


@pytest.mark.core
@pytest.mark.parametrize("act", CALLBACKS, ids=lambda act: act.__name__)
def test_a_callback_may_do_what_its_caller_may(act: Callable[[Mixed], None]) -> None:
    model = build_lazily()
    calls = []

    def on_step(done: int, total: int) -> None:
        calls.append(done)
        act(model)

    dormant.materialize(model, progress=on_step)
    assert calls
    assert_as_eager(model)


@pytest.mark.parametrize("act", CALLBACKS, ids=lambda act: act.__name__)
def test_a_callback_of_save_may_do_so_too(act: Callable[[Mixed], None], tmp_path: Path) -> None:
    model = build_lazily()
    calls = []

    def on_step(done: int, total: int) -> None:
        calls.append(done)
        act(model)

    dormant.save(model, tmp_path / "model.safetensors", progress=on_step)
    assert calls
    saved = load_file(tmp_path / "model.safetensors")
    for name, expected in build().state_dict().items():
        assert_same_bits(expected, saved[name], name)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_what_a_callback_raises_arrives_and_nothing_is_lost(error: type[BaseException]) -> None:
    model = build_lazily()

    def stop(done: int, total: int) -> None:
        raise error("stop")

    with pytest.raises(error, match="stop"):
        dormant.materialize(model, progress=stop)
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    assert_as_eager(model)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        dormant.lazy_init,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch.autograd.set_multithreading_enabled(False),
    ],
    ids=["no_grad", "inference_mode", "lazy_init", "autocast", "meta", "one thread"],
)
def test_modes_around_it_change_nothing(mode: Callable[[], Any]) -> None:
    model = build_lazily()
    with mode():
        dormant.materialize(model)
    assert_as_eager(model)
    assert not model.square.is_inference()
    model.layers[0](torch.ones(2, 200)).sum().backward()
    assert model.layers[0].weight.grad is not None


@pytest.mark.parametrize("threads", [1, 64])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    before = torch.get_num_threads()
    model = build_lazily()
    try:
        torch.set_num_threads(threads)
        dormant.materialize(model)
    finally:
        torch.set_num_threads(before)
    assert_as_eager(model)


def test_a_destructor_may_materialize() -> None:
    model = build_lazily()

    class Owner:
        def __del__(self) -> None:
            dormant.materialize(model)

    owner = Owner()
    del owner
    assert_as_eager(model)


FORKING = """
    import faulthandler, json, os, signal, threading, time
    import torch
    import dormant

    torch.set_num_threads(2)
    torch.rand(1 << 20).exp_()  # starts OpenMP's threads, which a child of fork lacks

    def build(layers=8):
        torch.manual_seed(0)
        return torch.nn.Sequential(*[torch.nn.Linear(500, 500) for _ in range(layers)])

    def same(model):
        torch.set_num_threads(1)
        expected = build(len(model)).state_dict().values()
        return all(map(torch.equal, expected, model.state_dict().values()))

    def in_fork(work):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # ends a child that hangs
            try:
                os._exit(0 if work() else 1)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with dormant.lazy_init():
        model = build()
"""


def test_a_forked_process_materializes_and_saves(tmp_path: Path) -> None:
    """Eager construction works there; PyTorch's threads, which we use, would be waited for."""
    found = in_child(
        FORKING,
        f"""
        def work():
            before = torch.get_num_threads()
            dormant.save(model, {str(tmp_path / "model.safetensors")!r})
            dormant.materialize(model)
            return torch.get_num_threads() == before and same(model)

        print(json.dumps({{"status": in_fork(work), "lazy": dormant.is_lazy(model)}}))
        """,
    )
    assert found == {"status": 0, "lazy": True}


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_forked_process_works_on_threads_of_its_own() -> None:
    """As many as PyTorch would use, each making its part of the values."""
    found = in_child(
        FORKING,
        """
        def threads_of(count):
            seen = set()
            with dormant.lazy_init():
                torch.manual_seed(0)
                large = torch.randn(1 << 27)
            torch.set_num_threads(count)
            dormant.materialize(
                large, progress=lambda done, of: seen.add(len(os.listdir("/proc/self/task")))
            )
            torch.set_num_threads(1)
            torch.manual_seed(0)
            assert torch.equal(large, torch.randn(1 << 27))
            return max(seen)

        def work():
            return threads_of(3) == threads_of(1) + 2

        print(json.dumps({"status": in_fork(work)}))
        """,
    )
    assert found == {"status": 0}


def test_a_forked_process_reads_values() -> None:
    """Operators bring to life what they read: on one thread there, as well."""
    found = in_child(
        FORKING,
        """
        with dormant.lazy_init():
            large = torch.zeros(1000, 1000).mul_(2).add_(1)

        def work():
            before = torch.get_num_threads()
            return large[0, 0].item() == 1 and torch.get_num_threads() == before

        print(json.dumps({"status": in_fork(work), "lazy": dormant.is_lazy(large)}))
        """,
    )
    assert found == {"status": 0, "lazy": True}


def test_a_process_forked_while_another_thread_works_is_not_locked_out() -> None:
    found = in_child(
        FORKING,
        """
        started, forked = threading.Event(), threading.Event()

        def on_step(done, total):
            started.set()
            forked.wait(60)

        worker = threading.Thread(target=dormant.materialize, args=(model,),
                                  kwargs={"progress": on_step})
        worker.start()
        started.wait(60)

        def work():
            with dormant.lazy_init():
                small = build(2)
            dormant.materialize(small)
            return same(small)

        status = in_fork(work)
        forked.set()
        worker.join()
        print(json.dumps({"status": status, "lazy": dormant.is_lazy(model)}))
        """,
    )
    assert found == {"status": 0, "lazy": False}


class LazyItems(torch.utils.data.Dataset[torch.Tensor]):
    """Each item is a layer's weight, built lazily where the item is asked for."""

    def __init__(self, stays_lazy: bool) -> None:
        self.stays_lazy = stays_lazy

    def __len__(self) -> int:
        return 3

    def __getitem__(self, item: int) -> torch.Tensor:
        with dormant.lazy_init():
            torch.manual_seed(item)
            weight = torch.randn(300, 300)
        if not self.stays_lazy:
            dormant.materialize(weight)
        return weight


@pytest.mark.parametrize("stays_lazy", [False, True])
def test_workers_of_a_data_loader(stays_lazy: bool) -> None:
    loader = torch.utils.data.DataLoader(LazyItems(stays_lazy), num_workers=1, timeout=100)
    for i, (item,) in enumerate(loader):
        torch.manual_seed(i)
        assert_same_bits(torch.randn(300, 300), item)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer reserves address space")
def test_exhausted_memory_is_an_error_and_what_is_left_can_be_tried_again() -> None:
    found = in_child(
        """
        import json, resource
        import torch
        import dormant
        """,
        """
        def build():
            torch.manual_seed(0)
            return torch.nn.Sequential(*[torch.nn.Linear(2000, 1000) for _ in range(16)])

        with dormant.lazy_init():
            model = build()
        dormant.materialize(model[0].bias)  # its threads have their stacks
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (60 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            dormant.materialize(model)
            error = ""
        except MemoryError as raised:
            error = str(raised)
        lazy = dormant.is_lazy(model)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        dormant.materialize(model)
        same = all(map(torch.equal, build().state_dict().values(), model.state_dict().values()))
        print(json.dumps({"error": error, "lazy": lazy, "same": same}))
        """,
    )
    assert found["lazy"]
    assert found["same"]
    assert "8000000 bytes" in found["error"]


@pytest.mark.threads
def test_overlapping_parts_from_several_threads_and_a_save(tmp_path: Path) -> None:
    def build_layers() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(*[nn.Linear(200, 200) for _ in range(4)])

    with dormant.lazy_init():
        layers = build_layers()
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    works: list[Callable[[], object]] = [
        lambda: dormant.materialize(layers[:3]),
        lambda: dormant.materialize(layers[1:], progress=lambda done, total: None),
        lambda: dormant.save(layers, tmp_path / "model.safetensors"),
        lambda: dormant.summary(layers),
        lambda: layers[2].bias.sum(),
    ]
    with contextlib.ExitStack() as joined:
        for work in works:
            thread = threading.Thread(target=run, args=(work,))
            thread.start()
            joined.callback(thread.join)
    assert not errors
    dormant.materialize(layers)
    for expected, got in zip(build_layers().parameters(), layers.parameters(), strict=True):
        assert_same_bits(expected, got)
