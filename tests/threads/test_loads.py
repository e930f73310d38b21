"""Threads that load one model: one after the other, and each load succeeds or changes nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import dormant
from dormant import _C

sys.path.insert(0, str(Path(__file__).parent))

from together import together

from compare import assert_same_bits

SECONDS = 60  # what is not done by then hangs
WIDTH = 64


class Stop(Exception):
    """What a progress callback raises."""


def state_of(seed: int) -> dict[str, torch.Tensor]:
    """What file `seed` has; that of 0 is what the models begin with."""
    shift = 1000 * seed
    return {name: tensor + shift for name, tensor in build("real").state_dict().items()}


def build(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    if kind == "real":
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    with dormant.lazy_init():
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    if kind == "mixed":
        dormant.materialize(model[0])
    return model


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths, 1):
        safetensors.torch.save_file(state_of(seed), path)
    return paths


class Loader:
    """A thread whose load stops in its progress callback until it is let go on, or to fail."""

    def __init__(self, model: nn.Module, path: Path, error: BaseException | None = None) -> None:
        self.is_loading = threading.Event()
        self.may_go_on = threading.Event()
        self.raised: BaseException | None = None
        self._error = error
        self._thread = threading.Thread(target=self._run, args=(model, path), daemon=True)
        self._thread.start()
        assert self.is_loading.wait(SECONDS)

    def finish(self) -> None:
        self.may_go_on.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _run(self, model: nn.Module, path: Path) -> None:
        try:
            dormant.load(model, path, progress=self._stop_once, mmap="never")
        except BaseException as error:
            self.raised = error

    def _stop_once(self, done: int, total: int) -> None:
        if not self.is_loading.is_set():
            self.is_loading.set()
            assert self.may_go_on.wait(SECONDS)
            if self._error is not None:
                raise self._error


def assert_whole(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert not _C.is_lazy(tensor), name
        assert not _C.carries_key(tensor), name
        assert_same_bits(expected[name], tensor, name)


@pytest.mark.threads
@pytest.mark.parametrize("kind", ["lazy", "mixed", "real"])
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_a_load_waits_for_that_of_another_thread_and_is_not_undone_by_it(
    kind: str, fails: bool, files: list[Path]
) -> None:
    model = build(kind)
    first = Loader(model, files[0], Stop() if fails else None)
    threading.Timer(0.2, first.may_go_on.set).start()
    dormant.load(model, files[1])
    first.finish()
    assert isinstance(first.raised, Stop) == fails
    assert_whole(model, state_of(2))


@pytest.mark.threads
@pytest.mark.parametrize("kind", ["lazy", "mixed", "real"])
def test_a_load_that_waited_and_fails_keeps_what_the_other_one_loaded(
    kind: str, files: list[Path]
) -> None:
    model = build(kind)
    shown = None if kind == "lazy" else model[0].weight.detach().numpy()
    first = Loader(model, files[0])
    threading.Timer(0.2, first.may_go_on.set).start()
    with pytest.raises(KeyError, match="more"):
        dormant.load(model, {**state_of(2), "more": torch.ones(1)})
    first.finish()
    assert first.raised is None
    assert_whole(model, state_of(1))
    if shown is not None:  # the memory is that which it was before both
        assert shown.tobytes() == state_of(1)["0.weight"].numpy().tobytes()
        assert model[0].weight.data_ptr() == shown.ctypes.data


@pytest.mark.threads
def test_a_conversion_of_another_thread_that_is_undone_is_not_seen(files: list[Path]) -> None:
    model = build("real")
    started = threading.Event()

    def load_converted() -> None:
        def stop(done: int, total: int) -> None:
            started.set()
            time.sleep(0.2)
            raise Stop

        with pytest.raises(Stop):
            dormant.load(model, files[0], dtype=torch.float64, progress=stop, mmap="never")

    thread = threading.Thread(target=load_converted, daemon=True)
    thread.start()
    assert started.wait(SECONDS)
    dormant.load(model, files[1])
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert model[0].weight.dtype is torch.float32
    assert_whole(model, state_of(2))


@pytest.mark.threads
def test_models_that_share_nothing_are_loaded_at_the_same_time(files: list[Path]) -> None:
    first, second = build("real"), build("real")
    with_first = Loader(first, files[0])
    dormant.load(second, files[1])
    assert_whole(second, state_of(2))
    assert not with_first.may_go_on.is_set()
    with_first.finish()
    assert_whole(first, state_of(1))


@pytest.mark.threads
def test_a_load_in_a_callback_cannot_wait_and_says_so(files: list[Path]) -> None:
    shared, own = build("real"), build("lazy")
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    refused: list[RuntimeError] = []

    def load_the_other(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(RuntimeError, match="another thread is loading the same") as caught:
                dormant.load(shared, files[1])
            refused.append(caught.value)

    first = Loader(shared, files[0], Stop())
    dormant.load(own, files[1], progress=load_the_other)
    first.finish()
    assert refused
    assert_whole(own, state_of(2))
    assert_whole(shared, before)
    dormant.load(shared, files[1])
    assert_whole(shared, state_of(2))


@pytest.mark.threads
@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_the_wait_for_another_load(files: list[Path]) -> None:
    model = build("real")
    first = Loader(model, files[0])
    main = threading.get_ident()
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    # The other thread is let go on only after this: without Ctrl-C it would wait for good.
    with pytest.raises(KeyboardInterrupt):
        dormant.load(model, files[1])
    first.finish()
    assert_whole(model, state_of(1))


@pytest.mark.threads
def test_a_state_dict_of_a_model_that_another_thread_loads_can_be_loaded(
    files: list[Path],
) -> None:
    """Its tensors are real before, and lazy for as long as the other load takes."""
    source, target = build("real"), build("lazy")
    state = dict(source.state_dict())
    first = Loader(source, files[0])
    threading.Timer(0.2, first.may_go_on.set).start()
    dormant.load(target, state)
    first.finish()
    assert first.raised is None
    assert_whole(source, state_of(1))
    for name, tensor in target.state_dict().items():
        assert not _C.is_lazy(tensor), name
        assert any(torch.equal(tensor, state_of(seed)[name]) for seed in (0, 1)), name


ROUNDS = int(os.environ.get("DORMANT_PAIR_ROUNDS", "2")) * 10


@pytest.mark.threads
@pytest.mark.parametrize("fails", [False, True], ids=["both succeed", "one fails"])
def test_a_real_model_that_two_threads_load_is_real_and_whole(
    fails: bool, files: list[Path]
) -> None:
    states = [state_of(1), state_of(2)]
    model = build("real")
    memory = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}

    def fail(done: int, total: int) -> None:
        if fails:
            raise Stop

    def load_and_fail(name: Path) -> None:
        try:
            dormant.load(model, name, progress=fail)
        except Stop:
            assert fails

    for _ in range(ROUNDS):
        together(
            lambda: dormant.load(model, files[0]),
            lambda: load_and_fail(files[1]),
        )
        for name, tensor in model.state_dict().items():
            assert not _C.is_lazy(tensor), name
            assert not _C.carries_key(tensor), name
            assert tensor.data_ptr() == memory[name], name
            expected = states[:1] if fails else states
            assert any(torch.equal(tensor, state[name]) for state in expected), name
