"""A load that fails leaves the model as it was, says why, and the next one works."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_load import (
    Saver,
    assert_same_model,
    eager,
    eager_loaded,
    fingerprint,
    lazy,
    state_of,
)
from loaded_modules import Counting, Plain
from torch import nn

import dormant
from compare import assert_same_bits
from reachable import holdings


class Large(nn.Module):
    """Layers to load, a head that is initialized in tiles, and squares that are replayed whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(600, 700) for _ in range(6)])
        self.head = nn.Linear(700, 300)
        self.squares = nn.ParameterList([nn.Parameter(torch.empty(90, 90)) for _ in range(4)])
        for square in self.squares:
            nn.init.orthogonal_(square)


def large_state() -> dict[str, torch.Tensor]:
    # Of another dtype, so that every byte is read and cast.
    return {n: t.half() for n, t in state_of(Large).items() if n.startswith("layers")}


def assert_untouched(build: Callable[[], nn.Module], model: nn.Module, before: Any) -> None:
    """The same objects with the same histories, which still give eager's values."""
    assert fingerprint(model) == before
    dormant.materialize(model)
    assert_same_model(eager(build), model)


def test_parameters_without_a_shape_have_none_again() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(8, 1), nn.LazyBatchNorm2d())

    shaped = build()
    shaped(torch.ones(2, 3, 4, 4))
    state = shaped.state_dict()
    model = lazy(build)
    before = {name: (id(t), type(t)) for name, t in model.state_dict(keep_vars=True).items()}
    with pytest.raises(KeyError, match="surplus"):
        dormant.load(model, {**state, "surplus": torch.ones(1)})
    after = {name: (id(t), type(t)) for name, t in model.state_dict(keep_vars=True).items()}
    assert after == before
    dormant.load(model, state, missing="error")
    for name, tensor in state.items():
        assert_same_bits(tensor, model.state_dict()[name], name)


def test_a_model_on_the_meta_device_is_refused(saved: Saver) -> None:
    """It has no values to begin with, and copies into it do nothing."""
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    path = saved(state_of(lambda: nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"2 of 2 tensors .* meta device.*: weight, bias\. Build"):
        dormant.load(layer, path)
    # What the message proposes.
    layer.load_state_dict(dormant.open_checkpoint(path), assign=True)
    dormant.materialize(layer)
    assert_same_bits(dormant.open_checkpoint(path)["bias"], layer.bias.detach())


@pytest.mark.parametrize(
    ("device", "message"),
    [("xpu", "cannot make"), ("hpu", "cannot make"), ("moon", "not a device that")],
)
def test_a_device_that_is_not_there(device: str, message: str, saved: Saver) -> None:
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=f"load: device '{device}'.* {message}"):
        dormant.load(model, saved(state_of(Plain)), device=device)
    assert_untouched(Plain, model, before)


class Stop(Exception):
    """Raised by progress callbacks."""


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        (KeyboardInterrupt, "first"),
        (KeyboardInterrupt, "between"),
        (KeyboardInterrupt, "last"),
        (Stop, "between"),
        (MemoryError, "last"),
    ],
)
def test_progress_may_stop_it_at_any_time(
    kind: type[BaseException], when: str, saved: Saver
) -> None:
    state = large_state()
    path = saved(state)
    model = lazy(Large)
    before, held = fingerprint(model), model.state_dict()

    def progress(done: int, total: int) -> None:
        now = "first" if done == 0 else "last" if done == total else "between"
        if now == when:
            raise kind

    with pytest.raises(kind):
        dormant.load(model, path, progress=progress)
    assert fingerprint(model) == before
    assert all(dormant.is_lazy(tensor) for tensor in held.values())

    dormant.load(model, path)
    assert_same_model(eager_loaded(Large, state, strict=False), model)
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, held[name], name)


def test_stopped_twice_and_then_initialized_it_is_the_eager_model(saved: Saver) -> None:
    path = saved(large_state())
    model = lazy(Large)
    before = fingerprint(model)

    def progress(done: int, total: int) -> None:
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            dormant.load(model, path, progress=progress)
    assert_untouched(Large, model, before)


@pytest.mark.parametrize("mmap", ["auto", "never"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_file_cut_short_after_it_was_opened(kept: float, mmap: Any, saved: Saver) -> None:
    path: Path = saved(large_state())
    checkpoint = dormant.open_checkpoint(path)
    size = path.stat().st_size
    model = lazy(Large)
    before = fingerprint(model)
    with path.open("r+b") as file:
        file.truncate(int(size * kept) if kept < 1 else int(kept))
    with pytest.raises((ValueError, OSError), match=re.escape(str(path))):
        dormant.load(model, checkpoint, mmap=mmap)
    assert_untouched(Large, model, before)


@pytest.mark.parametrize("mmap", ["auto", "never"])
def test_a_file_written_to_after_it_was_opened(mmap: Any, saved: Saver) -> None:
    path: Path = saved(large_state())
    checkpoint = dormant.open_checkpoint(path)
    model = lazy(Large)
    before = fingerprint(model)
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises((ValueError, OSError), match=re.escape(str(path))):
        dormant.load(model, checkpoint, mmap=mmap)
    assert_untouched(Large, model, before)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(OSError, match="absent") as caught:
        dormant.load(model, tmp_path / "absent.safetensors")
    assert caught.value.errno == errno.ENOENT
    assert_untouched(Plain, model, before)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("no checkpoint at all")
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        dormant.load(model, path)
    assert_untouched(Plain, model, before)


@pytest.mark.parametrize("private", [False, True])
def test_a_hook_that_raises(private: bool, saved: Saver) -> None:
    def build() -> nn.Module:
        model = nn.ModuleDict({"first": Plain(), "second": nn.Linear(3, 3)})

        def refuse(*_: Any) -> None:
            raise Stop

        if private:
            model["second"]._register_load_state_dict_pre_hook(refuse)
        else:
            model.register_load_state_dict_post_hook(refuse)
        return model

    path = saved(state_of(build))
    model = lazy(build)
    before = fingerprint(model)
    with pytest.raises(Stop):
        dormant.load(model, path)
    assert_untouched(build, model, before)


def test_extra_state_that_is_refused() -> None:
    class Refusing(Counting):
        def set_extra_state(self, state: dict[str, int]) -> None:
            raise Stop

    state = {"weight": torch.randn(3, 3), "_extra_state": {"steps": 1}}
    model = lazy(Refusing)
    before = fingerprint(model)
    with pytest.raises(Stop):
        dormant.load(model, state)
    assert_untouched(Refusing, model, before)


def test_a_budget_that_is_too_small(saved: Saver) -> None:
    state = large_state()
    path = saved(state)
    model = lazy(Large)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="memory_budget"):
        dormant.load(model, path, memory_budget=1)
    assert fingerprint(model) == before
    dormant.load(model, path)
    assert_same_model(eager_loaded(Large, state, strict=False), model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"missing": "maybe"}, ValueError),
        ({"unexpected": "init"}, ValueError),
        ({"mismatched": "perhaps"}, ValueError),
        ({"mmap": "sometimes"}, ValueError),
        ({"dtype": torch.int8}, ValueError),
        ({"dtype": "float32"}, TypeError),
        ({"device": "meta"}, ValueError),
        ({"memory_budget": "1"}, ValueError),
        ({"rename": 3}, TypeError),
    ],
    ids=str,
)
def test_options_are_checked_first(
    options: dict[str, Any], error: type[Exception], saved: Saver
) -> None:
    path = saved(state_of(Plain))
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(error, match=next(iter(options))):
        dormant.load(model, path, **options)
    assert_untouched(Plain, model, before)


def test_what_is_loaded_must_be_a_module_and_a_checkpoint(saved: Saver) -> None:
    with pytest.raises(TypeError, match="module"):
        dormant.load({}, saved(state_of(Plain)))  # type: ignore[arg-type]
    model = lazy(Plain)
    before = fingerprint(model)
    for checkpoint in (None, 3, [3]):
        with pytest.raises(TypeError, match="checkpoint"):
            dormant.load(model, checkpoint)  # type: ignore[arg-type]
    assert_untouched(Plain, model, before)


def bits_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in holdings(model).tensors.items()}


@pytest.mark.parametrize("problem", ["unexpected", "mismatched", "missing"])
def test_a_real_model_is_not_written_to_before_all_is_checked(problem: str, saved: Saver) -> None:
    state = state_of(Plain)
    if problem == "unexpected":
        state["zz"] = torch.ones(1)
    elif problem == "mismatched":
        state["frozen"] = torch.ones(6)
    else:
        del state["frozen"]
    model = eager(Plain)
    before = bits_of(model)
    with pytest.raises(KeyError):
        dormant.load(model, saved(state), missing="error")
    for name, tensor in holdings(model).tensors.items():
        assert_same_bits(before[name], tensor, name)


def test_a_real_model_half_written_is_said_to_be(saved: Saver) -> None:
    torch.set_num_threads(1)  # so that the first half is written before the second is asked for
    path: Path = saved(large_state())
    checkpoint = dormant.open_checkpoint(path)
    model = eager(Large)

    def progress(done: int, total: int) -> None:
        if done == 0:  # after the file was looked at, before it is read
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)

    with pytest.raises((ValueError, OSError)) as caught:
        dormant.load(model, checkpoint, progress=progress, mmap="never")
    text = str(caught.value)
    changed = [
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, eager(Large).state_dict()[name])
    ]
    assert changed
    assert [name for name in changed if name not in text] == []
