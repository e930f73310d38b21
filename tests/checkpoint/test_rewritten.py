"""Files that somebody rewrites while a model has been loaded, or will be, from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import dormant
from compare import assert_same_bits

pytestmark = pytest.mark.core

SIZE = 300


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE))


def lazy() -> nn.Module:
    with dormant.lazy_init():
        return build()


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build().state_dict()


def written(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def by_copy(path: Path, model: nn.Module) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other" * 1000)
    shutil.copyfile(other, path)


def by_open(path: Path, model: nn.Module) -> None:
    with path.open("wb") as file:
        file.write(b"x" * 100)


def in_place(path: Path, model: nn.Module) -> None:
    with path.open("r+b") as file:
        file.write(b"x" * path.stat().st_size)


def by_another_process(path: Path, model: nn.Module) -> None:
    program = "import sys; open(sys.argv[1], 'wb').write(b'x' * 5000)"
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)


WRITERS: dict[str, Callable[[Path, nn.Module], object]] = {
    "torch.save": lambda path, model: torch.save(model.state_dict(), path),
    "torch.save, legacy": lambda path, model: torch.save(
        model.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "torch.save to an open file": lambda path, model: torch.save(
        model.state_dict(), path.open("wb")
    ),
    "safetensors": lambda path, model: safetensors.torch.save_file(model.state_dict(), path),
    "dormant.save": lambda path, model: dormant.save(model, path.parent),
    "open": by_open,
    "in place": in_place,
    "truncate": lambda path, model: os.truncate(path, 0),
    "copyfile": by_copy,
    "another process": by_another_process,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_loaded_model_keeps_its_values(
    writer: str, suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = written(state, tmp_path / f"model{suffix}")
    model = lazy()
    dormant.load(model, path)
    WRITERS[writer](path, model)
    for name, tensor in model.state_dict().items():
        assert_same_bits(state[name], tensor, name)
    if writer.startswith("torch.save"):
        for name, tensor in torch.load(path if suffix == ".pt" else path.open("rb")).items():
            assert_same_bits(state[name], tensor, name)


def test_files_of_torch_save_are_read_and_safetensors_are_mapped(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    ways = {
        (suffix, mmap): {
            tensor.way
            for tensor in dormant.load(
                lazy(), written(state, tmp_path / f"model{suffix}"), mmap=mmap
            ).tensors
        }
        for suffix in (".pt", ".safetensors")
        for mmap in ("auto", "always", "never")
    }
    assert ways[".pt", "auto"] == {"tiles"}
    assert ways[".safetensors", "auto"] == {"mapped"}
    for suffix in (".pt", ".safetensors"):
        assert ways[suffix, "always"] == {"mapped"}
        assert ways[suffix, "never"] == {"tiles"}


def test_what_somebody_is_writing_is_not_mapped(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = written(state, tmp_path / "model.safetensors")
    model = lazy()
    with path.open("ab"):
        report = dormant.load(model, path)
    assert {tensor.way for tensor in report.tensors} == {"tiles"}
    for name, tensor in model.state_dict().items():
        assert_same_bits(state[name], tensor, name)


def test_what_the_model_has_written_meanwhile_is_kept(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = written(state, tmp_path / "model.safetensors")
    model = lazy()
    dormant.load(model, path)
    with torch.no_grad():
        model.get_parameter("0.weight")[7] = 5
    os.truncate(path, 0)
    expected = state["0.weight"].clone()
    expected[7] = 5
    assert_same_bits(expected, model.get_parameter("0.weight").detach())


def test_a_process_made_by_fork_keeps_the_values_too(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = written(state, tmp_path / "model.safetensors")
    model = lazy()
    dormant.load(model, path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            os.close(writing)
            os.read(reading, 1)
            found = model.state_dict()
            status = 0 if all(bool((state[name] == found[name]).all()) for name in state) else 2
        finally:
            os._exit(status)
    os.close(reading)
    os.truncate(path, 0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for name, tensor in model.state_dict().items():
        assert_same_bits(state[name], tensor, name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("writer", ["open", "in place", "truncate", "copyfile", "another process"])
def test_tensors_that_were_not_read_yet_say_that_the_file_changed(
    writer: str, suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = written(state, tmp_path / f"model{suffix}")
    model = lazy()
    dormant.load(model, path, materialize=False)
    WRITERS[writer](path, model)
    os.utime(path, ns=(0, 0))  # whatever the clock of the filesystem
    with pytest.raises(ValueError, match=rf"model\{suffix}.*Next: open the checkpoint again"):
        dormant.materialize(model)
    assert dormant.is_lazy(model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_lazy_model_is_saved_by_torch_onto_the_file_that_it_reads(
    suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = written(state, tmp_path / f"model{suffix}")
    model = lazy()
    dormant.load(model, path, materialize=False)
    torch.save(model.state_dict(), path)
    assert dormant.is_lazy(model)
    with path.open("rb") as file:
        saved = torch.load(file)
    dormant.materialize(model)
    for name, tensor in model.state_dict().items():
        assert_same_bits(state[name], saved[name], name)
        assert_same_bits(state[name], tensor, name)
