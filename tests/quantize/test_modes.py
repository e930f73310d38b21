"""Default dtypes, inference mode, default devices and threads around `quantize`: the same bits."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peers import assert_same_state, four_bit, int8
from torch import nn

import dormant

SCHEMES = ("nf4", "fp4", "int8")


def build(dtype: torch.dtype = torch.float32, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)).to(dtype)


def peer(model: nn.Module, scheme: str) -> nn.Module:
    return nn.Sequential(
        *(
            int8(layer) if scheme == "int8" else four_bit(layer, quant_type=scheme)
            for layer in model.children()
        )
    )


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_inside_a_context_of_another_dtype(scheme: str, dtype: torch.dtype) -> None:
    with dormant.lazy_init(dtype=dtype):
        model = build()
        dormant.quantize(model, scheme, skip=())
    dormant.materialize(model)
    with default_dtype(dtype):
        eager = build()
    assert_same_state(model, peer(eager, scheme))


MODES: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("what", ["lazy", "real", "load", "packed"])
def test_in_a_mode(what: str, scheme: str, mode: str) -> None:
    with dormant.lazy_init() if what != "real" else contextlib.nullcontext():
        model = build()
    state = build(seed=5).state_dict()
    packed = peer(build(seed=5), scheme).state_dict()
    with MODES[mode]():
        dormant.quantize(model, scheme, skip=())
        if what in ("load", "packed"):
            dormant.load(model, state if what == "load" else packed, missing="error")
        dormant.materialize(model)
    assert_same_state(model, peer(build(seed=5 if what in ("load", "packed") else 3), scheme))
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("mode", ["bfloat16", "inference"])
def test_the_tables_of_a_process_are_those_of_its_library_whatever_came_first(mode: str) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(path) for path in sys.path]!r}
import torch, dormant, bitsandbytes
from contextlib import nullcontext
from test_modes import MODES, build, peer, assert_same_state
with dormant.lazy_init():
    first, second = build(), build()
with MODES[{mode!r}]():
    dormant.quantize(first, "nf4", skip=())
dormant.quantize(second, "nf4", skip=())
dormant.materialize([first, second])
for model in (first, second):
    assert_same_state(model, peer(build(), "nf4"))
table = bitsandbytes.functional.name2qmap["dynamic"]
assert table.dtype is torch.float32 and not table.is_inference()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.threads
@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_other_threads(scheme: str) -> None:
    with dormant.lazy_init():
        models = [build(), build()]
    errors: list[BaseException] = []

    def work(model: nn.Module) -> None:
        try:
            dormant.quantize(model, scheme, skip=())
            dormant.materialize(model)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for model in models:
        assert_same_state(model, peer(build(), scheme))
