"""Checkpoints through filesystems of fsspec, and through objects with `pread`."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch

import dormant
from compare import assert_same_bits
from pages import run_page

STATE = {"a.weight": torch.randn(400, 300), "b.bias": torch.arange(7)}
DATA = safetensors.torch.save(STATE)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def _assert_holds(checkpoint: dormant.Checkpoint) -> None:
    state = dict(checkpoint)
    assert all(dormant.is_lazy(tensor) for tensor in state.values())
    dormant.materialize(state)
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert_same_bits(tensor, state[name], name)


def test_a_file_of_a_filesystem(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/models/m.safetensors", DATA)
    checkpoint = dormant.open_checkpoint("memory://models/m.safetensors")
    assert checkpoint.files == ("memory://models/m.safetensors",)
    assert "memory://models/m.safetensors" in repr(checkpoint)
    _assert_holds(checkpoint)


def test_folders_are_listed(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.pipe("/one/of-another-name.safetensors", DATA)
    memory.pipe("/one/README.md", b"")
    _assert_holds(dormant.open_checkpoint("memory://one"))
    dormant.save(STATE, tmp_path, max_shard_size=1 << 18)
    for path in tmp_path.iterdir():
        memory.pipe(f"/many/{path.name}", path.read_bytes())
    _assert_holds(dormant.open_checkpoint("memory://many/"))
    memory.pipe("/none/README.md", b"")
    with pytest.raises(ValueError, match="'memory://none' contains no checkpoint"):
        dormant.open_checkpoint("memory://none")
    with pytest.raises(FileNotFoundError, match="no such file or folder: memory://absent"):
        dormant.open_checkpoint("memory://absent")


def test_parts_of_a_tensor_parallel_set(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    parts = [{"layers.0.attention.wq.weight": torch.randn(4, 6)} for _ in range(2)]
    for rank, part in enumerate(parts):
        torch.save(part, tmp_path / "part.pth")
        memory.pipe(f"/llama/consolidated.{rank:02}.pth", (tmp_path / "part.pth").read_bytes())
    name = "layers.0.attention.wq.weight"
    whole = dormant.open_checkpoint("memory://llama")[name]
    dormant.materialize(whole)
    assert_same_bits(torch.cat([part[name] for part in parts]), whole)


def test_a_file_that_changed_is_noticed(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/m.safetensors", DATA)
    tensor = dormant.open_checkpoint("memory://m.safetensors")["a.weight"]
    memory.pipe("/m.safetensors", DATA + b"x")
    with pytest.raises(ValueError, match=r"has size .*, expected .* as when it was opened"):
        dormant.materialize(tensor)
    assert dormant.is_lazy(tensor)


def test_an_unknown_kind_of_url_says_so() -> None:
    with pytest.raises(ValueError, match="nosuch://x: Protocol not known: nosuch"):
        dormant.open_checkpoint("nosuch://x")


def test_file_urls_are_paths(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(DATA)
    checkpoint = dormant.open_checkpoint(path.as_uri())
    assert checkpoint.files == (path,)
    _assert_holds(checkpoint)


class Reader:
    """Bytes, and who asked for which."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.size = len(data)
        self.threads: set[int] = set()
        self.asked: list[tuple[int, int]] = []

    def pread(self, offset: int, count: int) -> object:
        self.threads.add(threading.get_ident())
        self.asked.append((offset, count))
        return self.data[offset : offset + count]


def test_an_object_with_pread() -> None:
    reader = Reader()
    checkpoint = dormant.open_checkpoint(reader=reader)
    assert checkpoint.files == ("reader",)
    assert checkpoint.entries["b.bias"].file == "reader"
    _assert_holds(checkpoint)
    assert sum(count for _, count in reader.asked) == len(DATA)


def test_any_buffer_and_any_kind_of_file(tmp_path: Path) -> None:
    class Views(Reader):
        name = "views"

        def pread(self, offset: int, count: int) -> object:
            return memoryview(bytearray(self.data[offset : offset + count]))

    torch.save(STATE, tmp_path / "m.pt")
    checkpoint = dormant.open_checkpoint(reader=Views((tmp_path / "m.pt").read_bytes()))
    assert checkpoint.files == ("views",)
    _assert_holds(checkpoint)


@pytest.mark.parametrize(
    ("give", "kind", "text"),
    [
        (lambda data: data[:-1], ValueError, " bytes for pread("),
        (lambda data: data + b"x", ValueError, " bytes for pread("),
        (lambda data: "text", TypeError, "gave str for pread"),
        (lambda data: None, TypeError, "gave NoneType for pread"),
    ],
)
def test_a_reader_that_gives_anything_else_leaves_tensors_lazy(
    give: object, kind: type[Exception], text: str
) -> None:
    state = {"a": torch.randn(300, 400)}
    reader = Reader(safetensors.torch.save(state | {"z": torch.zeros(200, 400)}))
    tensor = dormant.open_checkpoint(reader=reader)["z"]
    plain = reader.pread

    def pread(offset: int, count: int) -> object:
        data = plain(offset, count)
        return give(data) if offset > 1 << 16 else data  # type: ignore[operator]

    reader.pread = pread  # type: ignore[method-assign]
    with pytest.raises(kind) as caught:
        dormant.materialize(tensor)
    assert text in str(caught.value)
    assert "reader (tensor 'z')" in str(caught.value)
    assert dormant.is_lazy(tensor)


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (OSError(errno.ESTALE, "stale"), OSError, errno.ESTALE),
        (RuntimeError("mine"), OSError, errno.EIO),
        (ValueError("mine"), ValueError, None),
        (NotImplementedError("mine"), NotImplementedError, None),
    ],
)
def test_what_a_reader_raises_is_the_cause(
    error: Exception, kind: type[Exception], number: int | None
) -> None:
    reader = Reader(safetensors.torch.save({"a": torch.randn(300, 400)}))
    tensor = dormant.open_checkpoint(reader=reader)["a"]

    def pread(offset: int, count: int) -> object:
        reader.asked.append((offset, count))
        raise error

    reader.pread = pread  # type: ignore[method-assign]
    before = len(reader.asked)
    with pytest.raises(kind) as caught:
        dormant.materialize(tensor)
    assert caught.value.__cause__ is error
    assert len(reader.asked) == before + 1  # it is not tried again
    if number is not None:
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == number
    assert dormant.is_lazy(tensor)


@pytest.mark.parametrize("reader", [object(), 7, b"bytes"])
def test_what_is_no_reader_is_refused(reader: object) -> None:
    with pytest.raises(TypeError, match="reader must have `size` and `pread"):
        dormant.open_checkpoint(reader=reader)


def test_a_path_or_a_reader_but_not_both() -> None:
    with pytest.raises(TypeError, match="neither a path nor a reader"):
        dormant.open_checkpoint()
    with pytest.raises(TypeError, match="both a path and a reader"):
        dormant.open_checkpoint("x", reader=Reader())


@pytest.mark.parametrize("size", [-1, None, "7", 1 << 63, True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    reader = Reader()
    reader.size = size  # type: ignore[assignment]
    with pytest.raises(ValueError, match="has the size"):
        dormant.open_checkpoint(reader=reader)


def test_the_page_says_what_happens(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("remote.md")
    layer = names["layer"]
    assert_same_bits(layer.weight.detach()[:8].to(torch.bfloat16), names["rows"])
    assert_same_bits(layer.weight.detach(), names["model"].weight.detach())
    assert_same_bits(layer.weight.detach(), names["weight"])
    assert names["checkpoint"].files == ("archive",)


def test_a_hostile_header_is_refused_as_in_a_file() -> None:
    with pytest.raises(ValueError, match="reader"):
        dormant.open_checkpoint(reader=Reader(b"\xff" * 100))
    with pytest.raises(ValueError, match="is empty"):
        dormant.open_checkpoint(reader=Reader(b""))
