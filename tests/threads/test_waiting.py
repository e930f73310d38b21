"""Threads that want what another thread is making: they wait for it, and never for good."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dormant

sys.path.insert(0, str(Path(__file__).parent))

from together import together

from compare import assert_same_bits

SECONDS = 60  # what is not done by then hangs


def draw() -> torch.Tensor:
    return torch.empty(4000).normal_(generator=torch.Generator().manual_seed(0))


def lazy_draw() -> torch.Tensor:
    with dormant.lazy_init():
        return draw()


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"it never happened that {what}"
        time.sleep(0.005)


def is_in_core(thread: int) -> bool:
    """Whether the thread is inside the call that materializes."""
    frame = sys._current_frames().get(thread)
    return frame is not None and frame.f_code.co_name == "realize"


class Maker:
    """A thread that materializes and stops in its progress callback until it is let go on."""

    def __init__(self, target: torch.Tensor, error: BaseException | None = None) -> None:
        self.is_making = threading.Event()
        self.may_go_on = threading.Event()
        self.raised: BaseException | None = None
        self._target = target
        self._error = error
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Maker:
        self._thread.start()
        assert self.is_making.wait(SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        self.may_go_on.set()
        self.join()

    def join(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            dormant.materialize(self._target, progress=self._stop_once)
        except BaseException as error:
            self.raised = error

    def _stop_once(self, done: int, total: int) -> None:
        if not self.is_making.is_set():
            self.is_making.set()
            assert self.may_go_on.wait(SECONDS)
            if self._error is not None:
                raise self._error


@pytest.mark.threads
def test_four_threads_that_want_one_model_make_it_once() -> None:
    with dormant.lazy_init():
        alone, shared = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    needed = dormant.materialize(alone).operators
    works = [lambda: dormant.materialize(shared).operators] * 4
    with Maker(shared.weight) as maker:
        threading.Timer(0.2, maker.may_go_on.set).start()
        done = together(*works)
    weight_alone = 1
    assert sum(done) == needed - weight_alone


@pytest.mark.threads
def test_a_thread_whose_progress_callback_raises_leaves_the_work_to_who_waits() -> None:
    tensor = lazy_draw()
    main = threading.get_ident()
    with Maker(tensor, error=RuntimeError("stop")) as maker:

        def let_go_on_when_waited_for() -> None:
            until(lambda: is_in_core(main), "the main thread waits")
            maker.may_go_on.set()

        threading.Thread(target=let_go_on_when_waited_for, daemon=True).start()
        dormant.materialize(tensor)
    assert str(maker.raised) == "stop"
    assert_same_bits(draw(), tensor)


@pytest.mark.threads
@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_the_wait_for_another_thread_and_nothing_is_half_made() -> None:
    tensor = lazy_draw()
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: is_in_core(main), "the main thread waits")
        signal.pthread_kill(main, signal.SIGINT)

    with Maker(tensor) as maker:
        threading.Thread(target=interrupt, daemon=True).start()
        # The other thread is let go on only after this: without Ctrl-C it would wait for good.
        with pytest.raises(KeyboardInterrupt):
            dormant.materialize(tensor)
        assert dormant.is_lazy(tensor)
    assert maker.raised is None
    assert not dormant.is_lazy(tensor)
    assert_same_bits(draw(), tensor)


@pytest.mark.threads
def test_who_waits_is_not_told_of_progress_that_is_not_its_own() -> None:
    tensor = lazy_draw()
    told: list[tuple[int, int]] = []
    with Maker(tensor) as maker:
        threading.Timer(0.3, maker.may_go_on.set).start()
        dormant.materialize(tensor, progress=lambda done, total: told.append((done, total)))
    assert told == [], told


@pytest.mark.threads
def test_callbacks_that_materialize_each_others_tensors_do_not_wait_for_each_other() -> None:
    tensors = [lazy_draw(), lazy_draw()]
    both = threading.Barrier(2)
    nested = [False, False]

    def materialize(i: int) -> None:
        def in_callback(done: int, total: int) -> None:
            if not nested[i]:
                nested[i] = True
                both.wait(SECONDS)  # now each thread is making its own tensor
                dormant.materialize(tensors[1 - i])

        dormant.materialize(tensors[i], progress=in_callback)

    together(lambda: materialize(0), lambda: materialize(1))
    assert nested == [True, True]
    for tensor in tensors:
        assert_same_bits(draw(), tensor)


@pytest.mark.threads
def test_a_callback_that_materializes_the_same_tensor_does_not_wait_for_itself() -> None:
    tensor = lazy_draw()
    nested: list[bool] = []

    def in_callback(done: int, total: int) -> None:
        if not nested:
            nested.append(True)
            dormant.materialize(tensor)

    together(lambda: dormant.materialize(tensor, progress=in_callback))
    assert nested
    assert_same_bits(draw(), tensor)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_what_a_thread_of_its_parent_was_making() -> None:
    tensor = lazy_draw()
    expected = draw().numpy().tobytes()
    with Maker(tensor):
        child = os.fork()
        if child == 0:
            try:
                dormant.materialize(tensor)
                os._exit(0 if tensor.numpy().tobytes() == expected else 1)
            finally:
                os._exit(2)
        ended: list[int] = []

        def has_ended() -> bool:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(pid)

        try:
            until(has_ended, "the child ended")
        finally:
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    assert ended == [0]
    assert_same_bits(draw(), tensor)
