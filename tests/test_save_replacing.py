"""`save` over files that are there: one of the two saves whole, and who reads the old ones goes on.

What replaces shards is tried at every system call, with errors, interrupts and kills.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import dormant
from failing_calls import At, killed, raised

# (the earlier save, this one) of one file, or of shards with the same names or others.
SIZES = {
    "one by one": ("5GB", "5GB"),
    "one by shards": ("5GB", "3KB"),
    "shards by one": ("3KB", "5GB"),
    "shards by the same": ("3KB", "3KB"),
    "shards by more": ("3KB", "2KB"),
    "shards by fewer": ("2KB", "3KB"),
}


def state(value: float) -> dict[str, torch.Tensor]:
    """Four tensors of 1,200 bytes."""
    return {name: torch.full((300,), float(value + i)) for i, name in enumerate("abcd")}


def as_others_read(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers would read: the single file before the index before the shards."""
    whole = folder / "model.safetensors"
    if whole.exists():
        return safetensors.torch.load_file(whole)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {f: safetensors.torch.load_file(folder / f) for f in set(index["weight_map"].values())}
    return {name: files[file][name] for name, file in index["weight_map"].items()}


def which(folder: Path) -> float:
    """The value of the state that a folder has, whole."""
    read = as_others_read(folder)
    value = float(read["a"][0])
    expected = state(value)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name
        assert torch.equal(dormant.open_checkpoint(folder)[name].clone(), tensor), name
    return value


def weights(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_kill_at_any_call_leaves_one_of_the_two_saves_whole(
    sizes: tuple[str, str], links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    old, new, found, n = state(1), state(50), [], 0
    dormant.save(new, tmp_path / "new", max_shard_size=sizes[1])
    while True:
        n += 1
        folder = tmp_path / str(n)
        dormant.save(old, folder, max_shard_size=sizes[0])
        child = os.fork()
        if child == 0:
            try:
                with At(n, killed, links).patched(monkeypatch):
                    dormant.save(new, folder, max_shard_size=sizes[1], progress=False)
                os._exit(0)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        found.append(which(folder))
        if n % 2 == 0:  # whatever a killed process left, the next save is right
            dormant.save(state(7), folder, max_shard_size=sizes[1])
            assert which(folder) == 7
            assert weights(folder) == weights(tmp_path / "new")
            assert leftovers(folder) == []
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    assert n > 5
    assert found[0] == 1
    assert found[-1] == 50


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "EIO"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()],
    ids=repr,
)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_an_error_in_any_call_leaves_the_old_files_or_the_new_ones(
    sizes: tuple[str, str],
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new, n = state(1), state(50), 0
    dormant.save(new, tmp_path / "new", max_shard_size=sizes[1])
    dormant.save(old, tmp_path / "old", max_shard_size=sizes[0])
    expected = {True: weights(tmp_path / "old"), False: weights(tmp_path / "new")}
    folder, at = tmp_path / "saved", None
    while at is None or at.calls >= n:
        n += 1
        for name in weights(folder) if folder.exists() else ():
            (folder / name).unlink()
        dormant.save(old, folder, max_shard_size=sizes[0])
        assert leftovers(folder) == []
        failed = False
        with At(n, raised(error)).patched(monkeypatch) as at:
            try:
                dormant.save(new, folder, max_shard_size=sizes[1], progress=False)
            except type(error):
                failed = True
        value = which(folder)
        # An interrupt while leftovers are removed comes too late to undo anything.
        assert value == (1 if failed else 50) or isinstance(error, KeyboardInterrupt), n
        assert weights(folder) == expected[value == 1], n
    assert n > 5


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "EIO"), KeyboardInterrupt()], ids=repr)
def test_an_error_in_any_call_leaves_the_old_file_or_the_new_one(
    name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, at, n = tmp_path / name, None, 0
    while at is None or at.calls >= n:
        n += 1
        dormant.save(state(1), path)
        assert leftovers(tmp_path) == []
        failed = False
        with At(n, raised(error)).patched(monkeypatch) as at:
            try:
                dormant.save(state(50), path, progress=False)
            except type(error):
                failed = True
        value = float(dormant.open_checkpoint(path)["a"].clone()[0])
        assert value == (1 if failed else 50) or (
            value == 50 and isinstance(error, KeyboardInterrupt)
        )
        assert weights(tmp_path) == {name}
    assert n > 5


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_while_files_are_published_waits_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dormant.save(state(1), tmp_path, max_shard_size="3KB")

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    counted = At(0, interrupt)
    with counted.patched(monkeypatch):
        dormant.save(state(2), tmp_path, max_shard_size="3KB", progress=False)
    for n in range(1, counted.calls + 1):
        value = 10.0 * n
        with At(n, interrupt).patched(monkeypatch), pytest.raises(KeyboardInterrupt):
            dormant.save(state(value), tmp_path, max_shard_size="3KB", progress=False)
            threading.Event().wait(10)  # the signal may be handled a moment later
        assert which(tmp_path) in (value, value - 10, 2)
        assert leftovers(tmp_path) == []
        assert len(weights(tmp_path)) == 3


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(40, 40)
        self.b = nn.Linear(40, 40)


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("target", ["m.safetensors", "m.pt", "folder", "shards"])
@pytest.mark.parametrize("mmap", ["auto", "always", "never"])
def test_who_reads_the_files_that_are_saved_to_has_the_old_values(
    target: str, mmap: str, tmp_path: Path
) -> None:
    path = tmp_path / target
    size = "7KB" if target == "shards" else "5GB"
    old = Model()
    expected = values(old)
    dormant.save(old, path, max_shard_size=size)
    with dormant.lazy_init():
        lazy, other, cast, mapped = Model(), Model(), Model(), Model()
    for model in (lazy, other):
        dormant.load(model, path, materialize=False)
    dormant.load(cast, path, dtype=torch.bfloat16, materialize=False)
    dormant.load(mapped, path, mmap=mmap)
    opened = dormant.open_checkpoint(path)
    # Onto what it reads itself, cast; what it read is still lazy.
    dormant.save(cast, path, max_shard_size=size)
    again = dormant.open_checkpoint(path)
    for name, tensor in expected.items():
        assert torch.equal(again[name].clone(), tensor.to(torch.bfloat16)), name
    assert dormant.is_lazy(cast)
    # Other values, of less bytes: a mapped page that is gone would end the process.
    dormant.save({"a.weight": torch.zeros(1)}, path)
    dormant.materialize(cast)
    dormant.materialize(lazy)
    for name, tensor in expected.items():
        assert torch.equal(cast.state_dict()[name], tensor.to(torch.bfloat16)), name
        assert torch.equal(lazy.state_dict()[name], tensor), name
        assert torch.equal(mapped.state_dict()[name], tensor), name
        assert torch.equal(opened[name].clone(), tensor), name
    # A real one that shows the old files, and a lazy one that reads them, are saved.
    for model in (mapped, other):
        dormant.save(model, path, max_shard_size=size)
        again = dormant.open_checkpoint(path)
        assert all(torch.equal(again[n].clone(), t) for n, t in expected.items())


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_links_to_the_file_keep_what_they_lead_to(name: str, tmp_path: Path) -> None:
    blob = tmp_path / f"blob-{name}"
    dormant.save({"a": torch.ones(3)}, blob)
    before = blob.read_bytes()
    (tmp_path / "soft").mkdir()
    soft, hard = tmp_path / "soft" / name, tmp_path / f"hard-{name}"
    soft.symlink_to(blob)
    os.link(blob, hard)
    for path in (soft, hard):
        opened = dormant.open_checkpoint(path)
        dormant.save({"a": opened["a"] + 1}, path)
        assert torch.equal(dormant.open_checkpoint(path)["a"].clone(), torch.full((3,), 2.0))
    assert blob.read_bytes() == before
    assert not soft.is_symlink()


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    dormant.save({"a": torch.ones(3)}, path)
    path.chmod(0o600)
    dormant.save({"a": torch.ones(3)}, path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("where", ["file", "folder"])
def test_what_must_not_be_written_is_an_error(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    dormant.save({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    # The tests may run as root, to whom nothing is forbidden.
    if where == "file":
        monkeypatch.setattr(os, "access", lambda *args: False)
    else:
        real = os.open

        def refuse(name: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(name, flags, *args, **options)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot create .*m\.safetensors"):
        dormant.save({"a": torch.zeros(3)}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("then", ["nothing", "another file"])
def test_a_file_that_another_save_removes_is_not_read_only(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    dormant.save({"a": torch.ones(3)}, path)
    real = os.access

    def access(name: Any, mode: int) -> bool:
        monkeypatch.undo()
        path.rename(tmp_path / "removed")
        answer = real(name, mode)
        if then == "another file":
            path.write_bytes(b"")
        return answer

    monkeypatch.setattr(os, "access", access)
    dormant.save({"a": torch.zeros(3)}, path)
    assert torch.equal(safetensors.torch.load_file(path)["a"], torch.zeros(3))


def test_a_folder_of_the_name_of_a_file_gets_files(tmp_path: Path) -> None:
    (tmp_path / "m.pt").mkdir()
    dormant.save(state(1), tmp_path / "m.pt")
    assert weights(tmp_path / "m.pt") == {"model.safetensors"}
    (tmp_path / "out" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        dormant.save(state(1), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


@pytest.mark.threads
@pytest.mark.parametrize("sizes", ["3KB 3KB", "3KB 5GB", "2KB 3KB"])
def test_threads_that_save_to_one_folder_leave_one_save_whole(sizes: str, tmp_path: Path) -> None:
    together(tmp_path, sizes.split(), threads=True)


@pytest.mark.parametrize("sizes", ["3KB 3KB", "3KB 5GB", "2KB 3KB"])
def test_processes_that_save_to_one_folder_leave_one_save_whole(sizes: str, tmp_path: Path) -> None:
    together(tmp_path, sizes.split(), threads=False)


@pytest.mark.parametrize(
    "threads",
    [
        pytest.param(True, id="threads", marks=pytest.mark.threads),
        pytest.param(False, id="processes"),
    ],
)
def test_where_folders_cannot_be_locked_one_save_is_left_whole(
    threads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "as NFS answers")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    together(tmp_path, ["3KB", "5GB"], threads=threads)


def together(folder: Path, sizes: list[str], *, threads: bool) -> None:
    """Two save in turn as fast as they can while a third one reads."""
    dormant.save(state(0), folder, max_shard_size=sizes[0])
    failures: list[BaseException] = []

    def save(value: int, size: str) -> None:
        try:
            for i in range(8):
                dormant.save(state(value + 10 * i), folder, max_shard_size=size, progress=False)
        except BaseException as error:
            traceback.print_exc()  # a forked process says nothing else
            failures.append(error)

    def start(value: int, size: str) -> Callable[[], None]:
        if threads:
            thread = threading.Thread(target=save, args=(value, size))
            thread.start()
            return thread.join
        child = os.fork()
        if child == 0:
            save(value, size)
            os._exit(len(failures))

        def wait() -> None:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        return wait

    torch.set_num_threads(1)
    waits = [start(1000 * place, size) for place, size in enumerate(sizes, 1)]
    for _ in range(20):
        # A reader must never see tensors of two saves.
        with contextlib.suppress(FileNotFoundError):  # the single file went while it was looked for
            read = dormant.open_checkpoint(folder)
            value = float(read["a"].clone()[0])
            assert all(torch.equal(read[n].clone(), t) for n, t in state(value).items())
    for wait in waits:
        wait()
    assert not failures
    value = which(folder)
    assert value in (1070, 2070)
    names = weights(folder)
    size = sizes[0] if value == 1070 else sizes[1]
    dormant.save(state(value), folder, max_shard_size=size)
    assert weights(folder) == names
    assert leftovers(folder) == []


def test_a_reader_in_the_middle_of_a_save_finds_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dormant.save(state(1), tmp_path, max_shard_size="3KB")
    dormant.save(state(2), tmp_path / "new.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    real = Path.is_file

    def is_file(path: Path) -> bool:
        if path == index and index.exists():
            # What a save of one file does, after the reader has seen that there is no such file.
            (tmp_path / "new.safetensors").rename(tmp_path / "model.safetensors")
            index.unlink()
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    read = dormant.open_checkpoint(tmp_path)
    assert not index.exists()
    for name, tensor in state(2).items():
        assert torch.equal(read[name].clone(), tensor)
