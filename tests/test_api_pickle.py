"""Pickling lazy tensors as `torch.save` and `pickle` do: values, as of ordinary tensors."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C
from living import live_storages

pytestmark = pytest.mark.core


def make() -> dict[str, Any]:
    torch.manual_seed(3)
    matrix = torch.randn(40, 30)
    tagged: Any = nn.Parameter(torch.ones(5), requires_grad=False)
    tagged.tag = {"layer": 3}
    return {
        "matrix": matrix,
        "again": matrix,
        "view": matrix[3:, ::2].t(),
        "half": torch.randn(7).to(torch.bfloat16),
        "small": torch.arange(4).to(torch.uint16),
        "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
        "scalar": torch.ones(()),
        "empty": torch.zeros(0, 3),
        "list": [nn.Parameter(torch.zeros(3)), torch.ones(2, requires_grad=True)],
        "tagged": tagged,
        "storage": torch.full((6,), 3.0).untyped_storage(),
        "step": 7,
    }


def made(*, lazy: bool) -> dict[str, Any]:
    if not lazy:
        return make()
    with dormant.lazy_init():
        return make()


def tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return found | {f"list.{i}": tensor for i, tensor in enumerate(state["list"])}


def lazy_names(state: dict[str, Any]) -> set[str]:
    return {name for name, tensor in tensors(state).items() if dormant.is_lazy(tensor)}


def assert_same(expected: dict[str, Any], got: dict[str, Any]) -> None:
    assert list(expected) == list(got)
    for name, tensor in tensors(expected).items():
        other = tensors(got)[name]
        assert not dormant.is_lazy(other)
        assert_same_bits(tensor, other, name)
        assert (type(tensor), tensor.stride()) == (type(other), other.stride()), name
        assert tensor.requires_grad == other.requires_grad, name
        assert vars(tensor) == vars(other), name
    if "storage" in expected:
        assert expected["storage"].tolist() == got["storage"].tolist()
    assert expected["step"] == got["step"]


WAYS = {
    "torch.save": lambda obj, file: torch.save(obj, file),
    "legacy torch.save": lambda obj, file: torch.save(
        obj, file, _use_new_zipfile_serialization=False
    ),
    "pickle": pickle.dump,
    "pickle protocol 2": lambda obj, file: pickle.dump(obj, file, protocol=2),
}


def write(way: str, obj: object) -> bytes:
    file = io.BytesIO()
    WAYS[way](obj, file)
    return file.getvalue()


def read(way: str, data: bytes, **options: Any) -> Any:
    if way.startswith("pickle"):
        return pickle.loads(data)
    return torch.load(io.BytesIO(data), **options)


@pytest.mark.parametrize("way", WAYS)
def test_values_are_written_and_the_tensors_stay_lazy(way: str) -> None:
    eager, lazy = made(lazy=False), made(lazy=True)
    if way != "torch.save":  # the older layout, which pickle uses too, cannot be read with these
        for state in (eager, lazy):
            del state["small"], state["storage"]
    before = lazy_names(lazy)
    assert before >= {"matrix", "view", "half", "list.0", "tagged"}
    data = write(way, lazy)
    assert lazy_names(lazy) == before
    expected, got = read(way, write(way, eager)), read(way, data)
    assert_same(expected, got)
    assert got["matrix"] is got["again"]
    shared = {_C.storage_id(tensor) for tensor in (expected["matrix"], expected["view"])}
    assert len({_C.storage_id(got[name]) for name in ("matrix", "view")}) == len(shared)


@pytest.mark.parametrize("way", ["torch.save", "legacy torch.save"])
def test_the_file_is_that_of_ordinary_tensors(way: str) -> None:
    lazy, eager = write(way, made(lazy=True)), write(way, made(lazy=False))
    assert len(lazy) == len(eager)
    if way == "torch.save":  # the other layout names storages by their addresses
        assert lazy == eager


@pytest.mark.parametrize("way", WAYS)
def test_who_reads_it_needs_no_dormant(way: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(write(way, {"a": made(lazy=True)["matrix"]}))
    program = (
        "import pickle, sys, torch\n"
        "sys.modules['dormant'] = None\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        + (
            "    state = pickle.load(file)\n"
            if way.startswith("pickle")
            else "    state = torch.load(file, weights_only=True)\n"
        )
        + "print(state['a'].double().sum().item())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "state"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(result.stdout) == made(lazy=False)["matrix"].double().sum().item()


@pytest.mark.parametrize("way", ["torch.save", "legacy torch.save"])
def test_one_storage_under_two_dtypes_is_refused_as_of_ordinary_tensors(way: str) -> None:
    for lazy in (False, True):
        matrix = made(lazy=lazy)["matrix"]
        with pytest.raises(RuntimeError, match="view the same data as different types"):
            write(way, [matrix, matrix.view(torch.int32)])


def test_a_whole_model_is_written_inside_the_context_too() -> None:
    torch.manual_seed(0)
    eager = nn.TransformerEncoderLayer(16, 2, 32)
    torch.manual_seed(0)
    with dormant.lazy_init():
        model = nn.TransformerEncoderLayer(16, 2, 32)
        data = write("torch.save", model)
    assert dormant.is_lazy(model)
    loaded = read("torch.save", data, weights_only=False)
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, loaded.state_dict()[name], name)


def test_what_was_drawn_by_lazy_parameters_can_be_written() -> None:
    with dormant.lazy_init():
        drawn = torch.bernoulli(torch.full((300,), 0.5))
    loaded = read("torch.save", write("torch.save", drawn))
    assert dormant.is_lazy(drawn)
    assert_same_bits(drawn.clone(), loaded)


def test_the_generator_is_not_moved() -> None:
    lazy = made(lazy=True)
    before = torch.get_rng_state()
    for way in WAYS:
        write(way, lazy)
    assert torch.equal(torch.get_rng_state(), before)


MEMORY = """
import resource, sys, torch, dormant
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
with dormant.lazy_init():
    small = {"a": torch.ones(1000)}
    state = {str(i): torch.randn(4 << 20) for i in range(16)}
legacy = sys.argv[2] == "legacy"
torch.save(small, sys.argv[1], _use_new_zipfile_serialization=not legacy)
dormant.materialize(torch.empty(0))
before = peak()
torch.save(state, sys.argv[1], _use_new_zipfile_serialization=not legacy)
print(peak() - before, all(map(dormant.is_lazy, state.values())))
"""


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_the_values_are_in_memory_one_storage_at_a_time(layout: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "state.pt", layout],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    grown, lazy = result.stdout.split()
    assert lazy == "True"
    assert (tmp_path / "state.pt").stat().st_size > 16 * 16 << 20
    assert int(grown) < 100, "MiB, of 256 in the file"


# ---- what replaces a file


@pytest.mark.parametrize("way", ["torch.save", "legacy torch.save"])
def test_a_failure_leaves_the_file_that_was_there(way: str, tmp_path: Path) -> None:
    path, source = tmp_path / "state.pt", tmp_path / "source.pt"
    torch.save({"a": torch.ones(3)}, path)
    torch.save({"b": torch.randn(300)}, source)
    tensor = dormant.open_checkpoint(source)["b"]
    os.truncate(source, 10)
    before = path.read_bytes()
    legacy = way.startswith("legacy")
    with pytest.raises(ValueError, match=r"source\.pt"):
        torch.save({"b": tensor}, path, _use_new_zipfile_serialization=not legacy)
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"state.pt", "source.pt"}
    assert dormant.is_lazy(tensor)


@pytest.mark.parametrize("legacy", [False, True])
def test_lazy_tensors_are_saved_onto_the_file_that_they_are_read_from(
    legacy: bool, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    torch.save({"a": torch.arange(5000.0), "b": torch.ones(3000)}, path)
    with dormant.lazy_init():
        state = torch.load(path)
        torch.save({"a": state["a"] * 2}, path, _use_new_zipfile_serialization=not legacy)
    assert_same_bits(torch.arange(5000.0) * 2, torch.load(path)["a"])
    # What is still lazy goes on to mean the file that was there.
    assert dormant.is_lazy(state["a"])
    assert dormant.is_lazy(state["b"])
    assert_same_bits(torch.arange(5000.0), state["a"].clone())
    assert_same_bits(torch.ones(3000), state["b"].clone())


def test_a_replaced_file_keeps_its_mode_and_its_symbolic_link(tmp_path: Path) -> None:
    path, link = tmp_path / "state.pt", tmp_path / "link.pt"
    path.write_bytes(b"before")
    path.chmod(0o640)
    link.symlink_to(path)
    torch.save({"a": made(lazy=True)["matrix"]}, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_same_bits(made(lazy=False)["matrix"], torch.load(path)["a"])


def test_files_opened_by_others_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"before")
    inode = path.stat().st_ino
    lazy = made(lazy=True)["matrix"]
    with path.open("wb") as file:
        torch.save({"a": lazy}, file)
    assert path.stat().st_ino == inode
    assert_same_bits(made(lazy=False)["matrix"], torch.load(path)["a"])


# ---- what else goes through pickle's functions


def test_a_shallow_copy_is_lazy_and_shares_the_storage() -> None:
    for inside in (False, True):
        lazy = made(lazy=True)
        for name in ("view", "conjugate", "half", "tagged"):
            if inside:
                with dormant.lazy_init():
                    duplicate = copy.copy(lazy[name])
            else:
                duplicate = copy.copy(lazy[name])
            assert dormant.is_lazy(duplicate), name
            assert dormant.is_lazy(lazy[name]), name
            assert type(duplicate) is type(lazy[name])
            assert vars(duplicate) == vars(lazy[name])
            assert _C.storage_id(duplicate) == _C.storage_id(lazy[name])
            dormant.materialize(duplicate)
            assert_same_bits(made(lazy=False)[name], duplicate, name)
            assert_same_bits(made(lazy=False)[name], lazy[name], name)


def test_a_write_to_a_shallow_copy_is_seen_by_the_other() -> None:
    lazy = made(lazy=True)["matrix"]
    duplicate = copy.copy(lazy)
    duplicate.zero_()
    assert dormant.is_lazy(lazy)
    assert not lazy.any()


def test_shared_memory_and_deep_copies_work_as_before() -> None:
    lazy = made(lazy=True)["matrix"]
    duplicate = copy.deepcopy(lazy)
    assert dormant.is_lazy(duplicate)
    lazy.share_memory_()
    assert lazy.is_shared()
    assert dormant.is_lazy(duplicate)
    assert_same_bits(lazy, duplicate.clone())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.threads)])
def test_processes_of_multiprocessing_get_and_send_values(method: str) -> None:
    lazy = made(lazy=True)["matrix"]
    import torch.multiprocessing

    context = torch.multiprocessing.get_context(method)
    queue, answer = context.Queue(), context.Queue()
    process = context.Process(target=_answer, args=(lazy, queue, answer))
    process.start()
    doubled = queue.get(timeout=120).clone()
    answer.put("received")
    process.join(120)
    assert process.exitcode == 0
    assert_same_bits(made(lazy=False)["matrix"] * 2, doubled)


def _answer(tensor: torch.Tensor, queue: Any, answer: Any) -> None:
    torch.set_num_threads(1)
    queue.put(tensor * 2)
    answer.get(timeout=120)


@pytest.mark.threads
def test_a_queue_carries_lazy_tensors() -> None:
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    lazy = made(lazy=True)["half"]
    queue.put(lazy)
    assert_same_bits(made(lazy=False)["half"], queue.get())


def test_nothing_is_left_behind() -> None:
    from dormant.recording import patches

    lazy = made(lazy=True)
    write("torch.save", lazy)
    del lazy
    gc.collect()
    patches.uninstall_if_idle()
    assert patches.installed() == []
    assert live_storages() == 0
