"""What fails half-way changes nothing that can be seen, and succeeds when it is tried again.

Each test lets the first call of a kind fail, then the second, and so on: an allocation, a read from
a file, a write to one (`_C.set_faults`). Where there are many, it takes some of them.
"""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C
from dormant.reporting.memory import resident_bytes
from dormant.text.table import format_bytes
from faults import (
    Kind,
    assert_same_values,
    bits_of,
    files_of,
    fingerprint,
    named_as_written,
    open_files,
    sweep,
)
from living import live_storages
from reachable import holdings


class Model(nn.Module):
    """Made in tiles and by replay, transposed, tied, quantizable, with a buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.linear = nn.Linear(64, 128)
        self.norm = nn.BatchNorm1d(128)
        self.orthogonal = nn.Linear(24, 24)
        nn.init.orthogonal_(self.orthogonal.weight)
        self.turned = nn.Parameter(torch.randn(96, 72).t().contiguous())
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.embedding.weight


def eager(seed: int = 5) -> Model:
    torch.manual_seed(seed)
    return Model()


def lazy(seed: int = 5) -> Model:
    torch.manual_seed(seed)
    with dormant.lazy_init():
        return Model()


def mixed() -> Model:
    model = lazy()
    dormant.materialize([model.linear, model.norm.running_mean])
    return model


BUILDS: dict[str, Callable[[], Model]] = {"lazy": lazy, "real": eager, "mixed": mixed}


def quantized_lazily() -> Model:
    model = lazy()
    dormant.quantize(model, "nf4", skip=["orthogonal", "head"])
    return model


class FailingCall:
    """A function whose `n`-th call fails as where a device does not answer."""

    def __init__(self, function: Callable[..., Any], n: int) -> None:
        self.function, self.n, self.calls = function, n, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.n:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.function(*args, **options)


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    _C.set_faults("")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in eager(seed=6).state_dict().items()}


def write_checkpoint(kind: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    if kind == "distributed":
        dcp.save(dict(state), checkpoint_id=folder / "parts")
        return folder / "parts"
    if kind == "torch":
        torch.save(state, folder / "model.pt")
        return folder / "model.pt"
    untied = {name: tensor.clone() for name, tensor in state.items()}
    safetensors.torch.save_file(untied, folder / "model.safetensors")
    return folder / "model.safetensors"


# ---- load


@pytest.mark.parametrize("kind", ["read", "allocate"])
@pytest.mark.parametrize(
    ("saved", "build", "mmap"),
    [
        ("safetensors", "lazy", "never"),
        ("safetensors", "real", "auto"),
        ("safetensors", "mixed", "never"),
        ("torch", "lazy", "auto"),
        ("torch", "mixed", "auto"),
        ("distributed", "lazy", "auto"),
        ("distributed", "mixed", "always"),
    ],
)
def test_a_load_that_fails_leaves_the_model_as_it_was(
    saved: str, build: str, mmap: Any, kind: Kind, state: Any, tmp_path: Path
) -> None:
    path = write_checkpoint(saved, state, tmp_path)
    expected = eager()
    expected.load_state_dict(state)
    before: dict[str, Any] = {}

    def prepare() -> Model:
        model = BUILDS[build]()
        before["fingerprint"], before["bits"] = fingerprint(model), bits_of(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            assert fingerprint(model) == before["fingerprint"]
            for name, bits in before["bits"].items():
                if not named_as_written(error, name):
                    assert_same_bits(bits, holdings(model).tensors[name], name)
            dormant.load(model, path, mmap=mmap)
        assert_same_values(expected, model)

    faults = sweep(kind, prepare, lambda model: dormant.load(model, path, mmap=mmap), check)
    assert faults > 0


@pytest.mark.parametrize("kind", ["read", "allocate"])
def test_a_load_into_quantized_layers_that_fails_leaves_them_lazy(
    kind: Kind, state: Any, tmp_path: Path
) -> None:
    path = write_checkpoint("safetensors", state, tmp_path)
    expected = quantized_lazily()
    dormant.load(expected, path)
    before: dict[str, Any] = {}

    def prepare() -> Model:
        model = quantized_lazily()
        before["fingerprint"] = fingerprint(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            assert fingerprint(model) == before["fingerprint"]
            dormant.load(model, path)
        assert_same_values(expected, model)

    assert sweep(kind, prepare, lambda model: dormant.load(model, path), check) > 0


def test_a_load_of_a_state_dict_without_any_memory_is_restored(state: Any) -> None:
    """From the n-th on all allocations fail, those of what puts the model back, too."""
    before: dict[str, Any] = {}

    def prepare() -> Model:
        model = mixed()
        before["fingerprint"] = fingerprint(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            assert fingerprint(model) == before["fingerprint"]
            dormant.load(model, state)
        assert_same_bits(state["linear.weight"], model.linear.weight)

    def attempt(model: Model) -> None:
        dormant.load(model, state)

    assert sweep("allocate", prepare, attempt, check, and_all_after=True) > 0


class Shadowed(nn.Module):
    """Copies its weight, which the checkpoint lacks, while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(5000.0))
        self.bias = nn.Parameter(torch.zeros(3))
        self.shadow: torch.Tensor | None = None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.shadow = self.weight.detach().clone()


def test_a_copy_taken_while_loading_finds_memory_or_the_load_fails() -> None:
    def prepare() -> Shadowed:
        return Shadowed()

    def attempt(model: Shadowed) -> None:
        dormant.load(model, {"bias": torch.ones(3)}, materialize=False)

    def check(model: Shadowed, error: BaseException | None) -> None:
        assert not dormant.is_lazy(model.weight)
        assert torch.equal(model.weight, torch.arange(5000.0))
        if error is not None:
            assert torch.equal(model.bias, torch.zeros(3)) or named_as_written(error, "bias")
            model.shadow = None
            attempt(model)
        assert torch.equal(model.bias, torch.ones(3))
        assert model.shadow is not None
        dormant.materialize(model.shadow)
        assert torch.equal(model.shadow, torch.arange(5000.0))

    assert sweep("allocate", prepare, attempt, check, and_all_after=True) > 0


# ---- materialize


def materialize_one_by_one(model: nn.Module) -> None:
    for tensor in holdings(model).tensors.values():
        dormant.materialize(tensor)


ATTEMPTS: dict[str, Callable[[nn.Module], object]] = {
    "whole": dormant.materialize,
    "one by one": materialize_one_by_one,
    "budget": lambda model: dormant.materialize(model, memory_budget=200_000),
    "fast": lambda model: dormant.materialize(model, values="fast"),
    "empty": lambda model: dormant.materialize(model, values="empty"),
}


@pytest.mark.parametrize(
    ("build", "way"),
    [
        ("plain", "whole"),
        ("plain", "one by one"),
        ("plain", "budget"),
        ("quantized", "whole"),
        ("quantized", "budget"),
    ],
)
def test_materialize_leaves_each_tensor_lazy_or_done(build: str, way: str) -> None:
    prepare: Callable[[], Model] = lazy if build == "plain" else quantized_lazily
    expected = prepare()
    dormant.materialize(expected)
    if build == "plain":
        assert_same_values(eager(), expected)

    def check(model: Model, error: BaseException | None) -> None:
        for name, tensor in holdings(model).tensors.items():
            if not dormant.is_lazy(tensor):
                assert not _C.carries_key(tensor), name
                assert_same_bits(holdings(expected).tensors[name], tensor, name)
        if error is not None:
            dormant.materialize(model)
        assert_same_values(expected, model)

    assert sweep("allocate", prepare, ATTEMPTS[way], check) > 0


@pytest.mark.parametrize("way", ["fast", "empty"])
def test_materialize_without_exact_values_leaves_each_tensor_lazy_or_done(way: str) -> None:
    def check(model: Model, error: BaseException | None) -> None:
        ATTEMPTS[way](model)
        assert not dormant.is_lazy(model)

    assert sweep("allocate", lazy, ATTEMPTS[way], check) > 0


@pytest.mark.parametrize("kind", ["read", "allocate"])
def test_materialize_of_a_checkpoint_leaves_each_tensor_lazy_or_done(
    kind: Kind, state: Any, tmp_path: Path
) -> None:
    path = write_checkpoint("safetensors", state, tmp_path)

    def prepare() -> dict[str, torch.Tensor]:
        return dict(dormant.open_checkpoint(path))

    def check(tensors: dict[str, torch.Tensor], error: BaseException | None) -> None:
        if error is not None:
            dormant.materialize(tensors, mmap="never")
        for name, tensor in tensors.items():
            assert_same_bits(state[name], tensor, name)

    def attempt(tensors: dict[str, torch.Tensor]) -> None:
        dormant.materialize(tensors, mmap="never")

    assert sweep(kind, prepare, attempt, check) > 0


@pytest.mark.parametrize("way", ["whole", "dtype", "device", "torchao-like"])
def test_without_memory_materialize_says_how_much_is_needed_and_how_much_is_free(way: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "dtype": {"dtype": torch.bfloat16},
        "device": {"device": "cpu"},
    }

    def prepare() -> Model:
        model = lazy()
        if way == "torchao-like":
            dormant.quantize(model, lambda layer: layer, skip=["head"])
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is None:
            return
        assert type(error) is MemoryError
        rest = dormant.summary(model)
        lazy_storages = {t.storage for t in rest.tensors if t.lazy}
        text = str(error)
        assert text.startswith("materialize: out of memory. ")
        if "Nothing was changed." in text:  # asked whether the device can hold tensors
            return
        assert f"{len(lazy_storages)} storage" in text
        assert f" {format_bytes(rest.bytes_after - rest.bytes_now)}, the largest " in text
        assert " free. Tensors that are finished stay real." in text or resident_bytes() is None
        assert isinstance(error.__cause__, (MemoryError, RuntimeError))
        # It can be called again, which continues.
        dormant.materialize(model, **options.get(way, {}))
        assert not dormant.is_lazy(model)

    sweep(
        "allocate",
        prepare,
        lambda model: dormant.materialize(model, **options.get(way, {})),
        check,
        and_all_after=True,
    )


_LIMITED = """
import resource
import torch
import dormant
from dormant.reporting.memory import available_bytes

with dormant.lazy_init():
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(64)))
torch.manual_seed(0)
torch.set_num_threads(1)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (taken + (400 << 20), hard))
assert available_bytes() <= 400 << 20
try:
    dormant.materialize(model, memory_budget=16 << 20)
except MemoryError as error:
    print(error)
done = [not dormant.is_lazy(layer) for layer in model]
assert 1 < sum(done) < 64, done
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
kept = [layer.weight.data_ptr() for layer, real in zip(model, done) if real]
dormant.materialize(model)
assert kept == [layer.weight.data_ptr() for layer, real in zip(model, done) if real]
assert not dormant.is_lazy(model)
"""


@pytest.mark.skipif(resident_bytes() is None, reason="the system has no /proc")
def test_under_a_limit_of_the_system_the_rest_stays_lazy() -> None:
    child = subprocess.run(
        [sys.executable, "-c", _LIMITED], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    found = re.search(
        r"(\d+) storages still lazy need ([\d.]+) MiB, the largest 16.0 MiB; [\d.]+ [KM]?i?B free",
        child.stdout,
    )
    assert found, child.stdout
    assert float(found[2]) == 16 * int(found[1])


def test_an_operator_that_needs_values_fails_and_can_be_called_again() -> None:
    expected = eager().linear(torch.ones(2, 64))

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            model.linear(torch.ones(2, 64))
        assert_same_bits(expected, model.linear(torch.ones(2, 64)))

    assert sweep("allocate", lazy, lambda model: model.linear(torch.ones(2, 64)), check) > 0


# ---- save


def save_over(folder: Path, shards: bool) -> Callable[[nn.Module], object]:
    size = "20KB" if shards else "5GB"
    return lambda model: dormant.save(model, folder, max_shard_size=size)


@pytest.mark.parametrize("kind", ["write", "allocate"])
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("build", ["lazy", "real", "quantized"])
def test_a_save_that_fails_keeps_the_earlier_one(
    build: str, shards: bool, kind: Kind, tmp_path: Path
) -> None:
    prepare_model = quantized_lazily if build == "quantized" else BUILDS[build]
    folder, reference = tmp_path / "saved", tmp_path / "reference"
    save_over(reference, shards)(prepare_model())
    expected = files_of(reference)
    before: dict[str, Any] = {}

    def prepare() -> Model:
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
        dormant.save(eager(seed=9), folder, max_shard_size="30KB")
        before["files"] = files_of(folder)
        model = prepare_model()
        before["fingerprint"] = fingerprint(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            assert files_of(folder) == before["files"]
            assert fingerprint(model) == before["fingerprint"]
            save_over(folder, shards)(model)
        assert files_of(folder) == expected
        if build != "quantized":
            assert_same_saved(eager(), folder)

    faults = sweep(kind, prepare, save_over(folder, shards), check)
    assert faults > 0 or (kind == "allocate" and build == "real")


@pytest.mark.parametrize("kind", ["write", "allocate"])
@pytest.mark.parametrize("build", ["lazy", "real"])
def test_a_save_of_parts_that_fails_keeps_the_earlier_one(
    build: str, kind: Kind, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    before: dict[str, Any] = {}

    def save(model: nn.Module) -> None:
        dormant.save(model, folder, format="dcp", progress=False)

    def prepare() -> Model:
        save(eager(seed=9))
        before["files"] = files_of(folder)
        model = BUILDS[build]()
        before["fingerprint"] = fingerprint(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            assert files_of(folder) == before["files"]
            assert fingerprint(model) == before["fingerprint"]
            save(model)
        assert len(files_of(folder)) == 2
        assert_same_saved(eager(), folder)

    faults = sweep(kind, prepare, save, check)
    assert faults > 0 or (kind == "allocate" and build == "real")


def assert_same_saved(expected: nn.Module, folder: Path) -> None:
    saved = dormant.open_checkpoint(folder)
    for name, tensor in expected.state_dict().items():
        if name in saved:
            assert_same_bits(tensor.contiguous(), saved[name].clone(), name)


def test_a_save_of_what_cannot_be_read_keeps_the_earlier_one(state: Any, tmp_path: Path) -> None:
    path = write_checkpoint("safetensors", state, tmp_path)
    folder = tmp_path / "saved"
    dormant.save(eager(seed=9), folder)
    before = files_of(folder)

    def prepare() -> dict[str, torch.Tensor]:
        dormant.save(eager(seed=9), folder)
        return dict(dormant.open_checkpoint(path))

    def check(tensors: dict[str, torch.Tensor], error: BaseException | None) -> None:
        assert all(dormant.is_lazy(tensor) for tensor in tensors.values())
        if error is not None:
            assert files_of(folder) == before
            dormant.save(tensors, folder)
        saved = dormant.open_checkpoint(folder)
        for name, tensor in state.items():
            assert_same_bits(tensor, saved[name].clone(), name)

    assert sweep("read", prepare, lambda tensors: dormant.save(tensors, folder), check) > 0


CALLS = [
    "mkdir",
    "open",
    "pwrite",
    "fsync",
    "link",
    "replace",
    "unlink",
    "rmdir",
    "statvfs",
    "fstat",
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shards", [(False, True), (True, False), (True, True)], ids=str)
def test_a_system_call_that_fails_leaves_the_old_files_or_the_new_ones(
    shards: tuple[bool, bool], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of a save over an earlier one: of (`shards`) one file or several."""
    folder = tmp_path / "saved"
    old, new = eager(seed=9), eager()
    save_over(folder, shards[1])(new)
    expected = files_of(folder)
    n, call = 0, None
    while call is None or call.calls >= n:
        n += 1
        for path in folder.glob("model*"):
            path.unlink()
        save_over(folder, shards[0])(old)
        before, call, error = files_of(folder), FailingCall(getattr(os, name), n), None
        assert not any(file.startswith(".") for file in before)
        with monkeypatch.context() as patched:
            patched.setattr(os, name, call)
            try:
                save_over(folder, shards[1])(new)
            except OSError as caught:
                error = caught
        after = files_of(folder)
        # What could not be removed is still there, under no name that anybody looks for.
        named = {file: data for file, data in after.items() if not file.endswith(".tmp")}
        assert named == (before if error else expected), f"call {n}: {error}"
        assert error is None or error.errno == errno.EIO
        assert name in ("unlink", "rmdir", "open") or named == after


# ---- quantize, copies, pickles


@pytest.mark.parametrize("build", ["lazy", "real"])
def test_quantize_does_a_layer_or_leaves_it(build: str) -> None:
    def attempt(model: Model) -> None:
        dormant.quantize(model, "nf4", skip=["head"])

    expected = eager()
    attempt(expected)

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            for name in ("linear", "orthogonal"):
                layer, reference = getattr(model, name), getattr(expected, name)
                done = type(layer) is not nn.Linear
                if build == "lazy":
                    assert dormant.is_lazy(layer.weight)
                else:
                    weight = reference.weight if done else getattr(eager(), name).weight
                    assert_same_bits(weight, layer.weight)
                if done:
                    assert type(layer) is type(reference)
            attempt(model)
        dormant.materialize(model)
        assert_same_values(expected, model)

    assert sweep("allocate", BUILDS[build], attempt, check) > 0


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 64, 64))
        self.down_proj = nn.Parameter(torch.randn(4, 64, 64))


def experts(build: str) -> Experts:
    torch.manual_seed(5)
    if build == "real":
        return Experts()
    with dormant.lazy_init():
        return Experts()


@pytest.mark.parametrize("build", ["lazy", "real"])
def test_quantize_packs_a_parameter_or_leaves_it(build: str) -> None:
    def attempt(model: Experts) -> None:
        dormant.quantize(model, "nf4")

    expected = experts("real")
    attempt(expected)
    shapes = {"gate_up_proj": (4, 64, 64), "down_proj": (4, 64, 64)}

    def check(model: Experts, error: BaseException | None) -> None:
        if error is not None:
            left = dict(model.named_parameters(recurse=False))
            lists = getattr(model, "parametrizations", {})
            assert set(left) | set(lists) == set(shapes)
            assert not set(left) & set(lists)
            # One forward hook of each kind for a packed parameter, none for another.
            assert len(model._forward_hooks) == len(model._forward_pre_hooks) == len(lists)
            for name, parameter in left.items():
                assert getattr(model, name) is parameter
                assert parameter.shape == shapes[name]
            if left:
                attempt(model)
        dormant.materialize(model)
        assert type(model).__name__ == type(expected).__name__
        state = model.state_dict()
        for name, tensor in expected.state_dict().items():
            assert_same_bits(tensor, state[name], name)

    assert sweep("allocate", lambda: experts(build), attempt, check) > 0


def test_a_load_into_packed_parameters_that_fails_leaves_them_lazy() -> None:
    source = {name: torch.randn(4, 64, 64) for name in ("gate_up_proj", "down_proj")}
    expected = experts("lazy")
    dormant.quantize(expected, "nf4")
    dormant.load(expected, source)
    before: dict[str, Any] = {}

    def prepare() -> Experts:
        model = experts("lazy")
        dormant.quantize(model, "nf4")
        before["fingerprint"], before["kind"] = fingerprint(model), type(model)
        return model

    def check(model: Experts, error: BaseException | None) -> None:
        if error is not None:
            assert type(model) is before["kind"]
            assert fingerprint(model) == before["fingerprint"]
            dormant.load(model, source)
        assert_same_values(expected, model)

    assert sweep("allocate", prepare, lambda model: dormant.load(model, source), check) > 0


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "state dict": lambda model: copy.deepcopy(model.state_dict()),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_that_fails_leaves_the_original_as_it_was(way: str) -> None:
    before: dict[str, Any] = {}

    def prepare() -> Model:
        model = mixed()
        before["fingerprint"], before["bits"] = fingerprint(model), bits_of(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        assert fingerprint(model) == before["fingerprint"]
        for name, bits in before["bits"].items():
            assert_same_bits(bits, holdings(model).tensors[name], name)
        copied = COPIES[way](model)
        dormant.materialize(copied)
        state = copied.state_dict() if isinstance(copied, nn.Module) else copied
        for name, tensor in eager().state_dict().items():
            assert_same_bits(tensor, state[name], name)

    sweep("allocate", prepare, COPIES[way], check)


# ---- recording


def test_a_construction_that_fails_can_be_begun_again() -> None:
    """What construction reads needs memory; the generator is where the last operator left it."""
    torch.manual_seed(5)
    expected = eager()

    def attempt(_: None) -> None:
        lazy()
        with dormant.lazy_init():
            float(nn.init.normal_(torch.empty(70, 80)).sum())

    def check(_: None, error: BaseException | None) -> None:
        assert not _C.recording()
        model = lazy()
        dormant.materialize(model)
        assert_same_values(expected, model)

    assert sweep("allocate", lambda: None, attempt, check) > 0


# ---- nothing is lost


def test_failures_lose_no_memory(state: Any, tmp_path: Path) -> None:
    """Each failed load and save takes megabytes meanwhile; hundreds of them leave none."""
    big = {"weight": torch.ones(1024, 1024), "bias": torch.ones(1024)}
    path = tmp_path / "big.safetensors"
    safetensors.torch.save_file(big, path)
    with dormant.lazy_init():
        layer = nn.Linear(1024, 1024)

    def fail(kind: Kind, attempt: Callable[[], object]) -> None:
        for n in (1, 2, 3):
            _C.set_faults(f"{kind}:{n}")
            try:
                attempt()
            except (MemoryError, RuntimeError, OSError):
                pass
            finally:
                _C.set_faults("")

    def load() -> None:
        with dormant.lazy_init():
            target = nn.Linear(1024, 1024)
        dormant.load(target, path, mmap="never")

    def round_of_failures() -> None:
        fail("read", load)
        fail("allocate", load)
        fail("write", lambda: dormant.save(layer, tmp_path / "saved"))
        gc.collect()

    for _ in range(3):
        round_of_failures()
    live, before = live_storages(), resident_bytes()
    files = open_files()
    for _ in range(20):
        round_of_failures()
    assert live_storages() == live
    assert open_files() == files
    after = resident_bytes()
    if before is not None and after is not None:
        # A leak in one place takes 20 times 4 MiB; what the allocator keeps is less.
        assert after - before < 64 << 20


# ---- the switch itself


def test_the_environment_arms_a_whole_process(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    program = (
        "import dormant, json, sys\n"
        "try: dormant.open_checkpoint(sys.argv[1]); print('null')\n"
        "except OSError as error: print(json.dumps([error.errno, str(error)]))\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    environment = {**os.environ, "DORMANT_FAULTS": "read:2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    number, message = json.loads(result.stdout)
    assert number == errno.EIO
    assert "reading" in message
    assert str(path) in message


@pytest.mark.parametrize("text", ["read", "read:x", "paint:1", "read:1,,"])
def test_a_misspelled_switch_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected allocate, read, write, publish or link"):
        _C.set_faults(text)
