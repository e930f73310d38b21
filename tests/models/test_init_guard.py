"""Two threads in which transformers initializes leave PyTorch's functions in torch.nn.init."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import initialization

import dormant

pytestmark = pytest.mark.threads

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def assert_pytorchs() -> None:
    """The library has kept PyTorch's functions since it was imported."""
    for name, function in initialization.TORCH_INIT_FUNCTIONS.items():
        assert getattr(torch.nn.init, name) is function, name


def in_two_threads(first: Callable[[], Any], second: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(first), pool.submit(second)]:
            future.result(timeout=60)


def test_the_last_one_inside_puts_pytorchs_functions_back() -> None:
    both, first_is_out = threading.Barrier(2, timeout=30), threading.Event()
    seen = []

    def first() -> None:
        with dormant.lazy_init(), initialization.guard_torch_init_functions():
            both.wait()
        first_is_out.set()

    def second() -> None:
        with dormant.lazy_init(), initialization.guard_torch_init_functions():
            both.wait()
            assert first_is_out.wait(30)
            seen.append(torch.nn.init.normal_)

    in_two_threads(first, second)
    assert seen == [initialization.normal_]
    assert_pytorchs()


def test_functions_are_put_back_after_an_error() -> None:
    with dormant.lazy_init():
        with pytest.raises(KeyError), initialization.guard_torch_init_functions():
            with initialization.guard_torch_init_functions():
                assert torch.nn.init.normal_ is initialization.normal_
            assert torch.nn.init.normal_ is initialization.normal_
            raise KeyError
        assert_pytorchs()
    assert_pytorchs()


class Meeting(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """The second thread begins while the first initializes, and initializes when that is done."""

    first_is_inside: threading.Event
    second_is_inside: threading.Event
    first_is_done: threading.Event
    thread = threading.local()

    @classmethod
    def _load(cls, folder: Path, *, first: bool) -> Any:
        cls.thread.is_first, cls.thread.has_met = first, False
        assert first or cls.first_is_inside.wait(30)
        with dormant.lazy_init():
            model = cls.from_pretrained(folder)
        if first:
            cls.first_is_done.set()
        return model

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if getattr(self.thread, "has_met", True):
            return
        self.thread.has_met = True
        if self.thread.is_first:
            self.first_is_inside.set()
            assert self.second_is_inside.wait(30)
        else:
            self.second_is_inside.set()
            assert self.first_is_done.wait(30)


def test_two_threads_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    for name in ("first_is_inside", "second_is_inside", "first_is_done"):
        setattr(Meeting, name, threading.Event())
    expected = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    loaded: list[Any] = []

    def load(first: bool) -> None:
        loaded.append(Meeting._load(tmp_path, first=first))

    in_two_threads(lambda: load(True), lambda: load(False))
    assert_pytorchs()
    for model in loaded:
        dormant.materialize(model)
        for name, tensor in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
