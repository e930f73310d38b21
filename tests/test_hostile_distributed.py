"""Folders of torch.distributed.checkpoint that are damaged or malicious.

Each is refused, when it is opened or, where only a data file tells, when a tensor is wanted;
nothing that the pickle names is imported or called.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

import dormant

Change = Callable[[Metadata], Any]


def values() -> dict[str, Any]:
    return {
        "model": {"w": torch.arange(24.0).reshape(4, 6), "b": torch.arange(3)},
        "step": 7,
        "note": "text",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(values(), checkpoint_id=tmp_path)
    return tmp_path


def metadata_of(folder: Path) -> Metadata:
    found: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return found


def change(folder: Path, edit: Change) -> None:
    metadata = metadata_of(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(edit(metadata) or metadata))


def weight(metadata: Metadata) -> TensorStorageMetadata:
    described = metadata.state_dict_metadata["model.w"]
    assert isinstance(described, TensorStorageMetadata)
    return described


def place(metadata: Metadata, name: str = "model.w") -> tuple[MetadataIndex, _StorageInfo]:
    return next((i, info) for i, info in metadata.storage_data.items() if i.fqn == name)


def sized(*sizes: int) -> Change:
    def edit(metadata: Metadata) -> None:
        weight(metadata).size = torch.Size(sizes)

    return edit


def chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Change:
    """The tensor cut into such (offsets, sizes), all of them said to lie at its one place."""

    def edit(metadata: Metadata) -> None:
        _, info = place(metadata)
        weight(metadata).chunks = [
            ChunkStorageMetadata(torch.Size(begin), torch.Size(sizes)) for begin, sizes in boxes
        ]
        for begin, _ in boxes:
            metadata.storage_data[MetadataIndex("model.w", begin)] = info

    return edit


def stored(**facts: Any) -> Change:
    def edit(metadata: Metadata) -> None:
        for name, value in facts.items():
            setattr(place(metadata)[1], name, value)

    return edit


def assigned(attribute: str, value: Any) -> Change:
    return lambda metadata: setattr(metadata, attribute, value)


def described(**facts: Any) -> Change:
    def edit(metadata: Metadata) -> None:
        for name, value in facts.items():
            setattr(weight(metadata), name, value)

    return edit


def without_place(metadata: Metadata) -> None:
    del metadata.storage_data[place(metadata)[0]]


def bytes_for_tensor(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.w"] = BytesStorageMetadata()


METADATA = {
    "one chunk too small": (chunks(((0, 0), (4, 5))), "no piece with elements"),
    "a gap between": (chunks(((0, 0), (1, 6)), ((2, 0), (2, 6))), r"\[1:2, 0:6\]"),
    "a gap at the end": (chunks(((0, 0), (3, 6))), r"\[3:4, 0:6\]"),
    "an overlap": (chunks(((0, 0), (3, 6)), ((2, 0), (2, 6))), "overlap"),
    "the same twice": (chunks(((0, 0), (4, 6)), ((0, 0), (4, 6))), "overlap"),
    "outside": (chunks(((0, 0), (4, 6)), ((4, 0), (1, 6))), "outside the sizes of the tensor"),
    "beyond counting": (chunks(((2**62, 0), (2**62, 6))), "outside the sizes of the tensor"),
    "negative offsets": (chunks(((-1, 0), (4, 6))), "non-negative"),
    "negative sizes": (sized(-4, 6), "non-negative"),
    "fewer dimensions": (chunks(((0,), (24,))), "outside the sizes of the tensor"),
    "no chunks": (chunks(), "no piece with elements"),
    "too many dimensions": (sized(*[1] * 65), "at most 64 dimensions"),
    "sizes that overflow": (sized(2**40, 2**40), "overflows"),
    "no elements, and strides that overflow": (
        lambda m: (sized(0, 2**40, 2**40)(m), chunks()(m))[0],
        "overflows",
    ),
    "sizes beyond 64 bits": (sized(2**70, 6), "non-negative"),
    "more elements than bytes": (
        lambda m: (sized(2**30, 6)(m), chunks(((0, 0), (2**30, 6)))(m))[0],
        "expected at least",
    ),
    "offset behind the end": (stored(offset=10**9), "has .* bytes at byte 1000000000"),
    "length behind the end": (stored(length=10**9), "which has"),
    "both overflow": (stored(offset=2**63 - 1, length=2**63 - 1), "which has"),
    "a negative offset": (stored(offset=-1), "non-negative"),
    "offset of text": (stored(offset="0"), "non-negative"),
    "out of the folder": (stored(relative_path="../other.distcp"), "leaves the folder"),
    "hidden way out": (stored(relative_path="a/../../b"), "leaves the folder"),
    "absolute": (stored(relative_path="/etc/passwd"), "an absolute path"),
    "empty": (stored(relative_path=""), "an empty path"),
    "a zero": (stored(relative_path="a\0b"), "a path with a null character"),
    "a path of bytes": (stored(relative_path=b"__0_0.distcp"), "expected text"),
    "compressed": (stored(transform_descriptors=["stream.zstd/1"]), "stream.zstd/1"),
    "no place": (without_place, "does not give"),
    "bytes without place": (bytes_for_tensor, "does not give"),
    "no storage data": (assigned("storage_data", None), "an object with attribute storage_data"),
    "storage data of another kind": (assigned("storage_data", [1]), "expected a dict"),
    "storage data of other keys": (assigned("storage_data", {"w": 1}), "a MetadataIndex"),
    "no tensors": (
        assigned("state_dict_metadata", None),
        "an object with attribute state_dict_metadata",
    ),
    "tensors in a list": (assigned("state_dict_metadata", []), "expected a dict"),
    "names of numbers": (assigned("state_dict_metadata", {1: None}), "expected text"),
    "surrogates": (assigned("state_dict_metadata", {"\ud800": None}), "expected text"),
    "no properties": (described(properties=None), "an object with attribute properties"),
    "other properties": (described(properties={}), "a TensorProperties"),
    "chunks of numbers": (described(chunks=[1, 2]), "a ChunkStorageMetadata"),
    "chunks in a tuple": (described(chunks=()), "expected a list"),
    "size of text": (described(size="46"), "a torch.Size"),
    "size of floats": (described(size=(4.0, 6.0)), "non-negative"),
    "another object": (lambda metadata: {"no": "metadata"}, "a Metadata"),
    "a list": (lambda metadata: [1], "a Metadata"),
}


@pytest.mark.parametrize(("edit", "message"), METADATA.values(), ids=METADATA)
def test_metadata_that_contradicts_itself_is_refused(
    edit: Change, message: str, folder: Path
) -> None:
    change(folder, edit)
    with pytest.raises((ValueError, NotImplementedError), match=message) as caught:
        dormant.open_checkpoint(folder)
    assert ".metadata" in str(caught.value)


def test_a_dtype_of_quantized_elements_is_refused(folder: Path) -> None:
    def edit(metadata: Metadata) -> None:
        weight(metadata).properties.dtype = torch.quint8

    change(folder, edit)
    with pytest.raises(NotImplementedError, match="quint8"):
        dormant.open_checkpoint(folder)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


@pytest.mark.parametrize("where", ["root", "state_dict_metadata", "planner_data", "storage_meta"])
def test_nothing_is_called(where: str, folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "called"
    call = Call(os.mkdir, str(witness))
    change(folder, (lambda m: call) if where == "root" else assigned(where, call))
    if where in ("planner_data", "storage_meta"):
        assert len(dormant.open_checkpoint(folder)) == 2
    else:
        with pytest.raises(ValueError, match="expected"):
            dormant.open_checkpoint(folder)
    assert not witness.exists()


def test_nothing_is_imported(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(data.replace(b"\x8c\x08Metadata", b"\x8c\x08antigrav"))
    with pytest.raises(ValueError, match="a Metadata"):
        dormant.open_checkpoint(folder)
    assert "antigravity" not in sys.modules


def test_metadata_that_is_cut_short_is_refused(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    for end in range(0, len(data), 7):
        (folder / ".metadata").write_bytes(data[:end])
        with pytest.raises(ValueError, match="metadata"):
            dormant.open_checkpoint(folder)


def test_changed_metadata_is_refused_or_read(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 0x11
        (folder / ".metadata").write_bytes(bytes(changed))
        with contextlib.suppress(ValueError, NotImplementedError, OSError):
            dict(dormant.open_checkpoint(folder))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "__0_0.distcp").rename(folder / "__1_0.distcp")
    with pytest.raises(FileNotFoundError, match=r"__0_0\.distcp"):
        dormant.open_checkpoint(folder)


def test_a_save_that_did_not_end_is_named(folder: Path) -> None:
    (folder / ".metadata").unlink()
    with pytest.raises(ValueError, match="did not finish"):
        dormant.open_checkpoint(folder)


def test_a_link_in_the_place_of_a_file_is_one_that_its_owner_made(folder: Path) -> None:
    (folder / "__0_0.distcp").rename(folder.parent / "elsewhere.distcp")
    (folder / "__0_0.distcp").symlink_to(folder.parent / "elsewhere.distcp")
    assert dormant.open_checkpoint(folder)["model.b"].tolist() == [0, 1, 2]


def archive(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def replaced(folder: Path, data: bytes) -> None:
    """Puts other bytes in the place of the weight's."""
    path = folder / "__0_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content + data)
    change(folder, stored(offset=len(content), length=len(data)))


def rezipped(edit: Callable[[str, bytes], tuple[str, bytes] | None], method: int = 0) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(archive(values()["model"]["w"])))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for info in source.infolist():
            edited = edit(info.filename, source.read(info))
            if edited is not None:
                target.writestr(*edited)
    return file.getvalue()


def repickled(old: bytes, new: bytes) -> bytes:
    def edit(name: str, data: bytes) -> tuple[str, bytes]:
        if not name.endswith("data.pkl"):
            return name, data
        assert old in data
        return name, data.replace(old, new)

    return rezipped(edit)


def same(name: str, data: bytes) -> tuple[str, bytes]:
    return name, data


GOOD = archive(torch.arange(24.0).reshape(4, 6))
END = len(GOOD) - 22

ARCHIVES: dict[str, tuple[bytes, str]] = {
    "zeros": (bytes(2000), "not a file of torch.save"),
    "nothing but a tensor": (bytes(96), "not a file of torch.save"),
    "another dtype": (archive(torch.ones(4, 6, dtype=torch.int32)), "got a tensor of Int"),
    "other sizes": (archive(torch.ones(6, 4)), r"sizes \[6, 4\]"),
    "more dimensions": (archive(torch.ones(4, 6, 1)), r"sizes \[4, 6, 1\]"),
    "a list": (archive([torch.ones(4, 6)]), "expected a strided tensor"),
    "sparse": (archive(torch.ones(4, 6).to_sparse()), "is a sparse tensor"),
    "text": (archive("text" * 100), "expected a strided tensor"),
    "cut short": (GOOD[:-30], "no readable directory"),
    "a byte more": (GOOD + b"x", "no readable directory"),
    "a prefix": (b"x" * 16 + GOOD, "is not a file of torch.save"),
    "compressed": (rezipped(same, zipfile.ZIP_DEFLATED), "compression method 8"),
    "no pickle": (
        rezipped(lambda n, d: None if n.endswith("data.pkl") else (n, d)),
        "0 of them named",
    ),
    "no elements": (
        rezipped(lambda n, d: None if n.endswith("data/0") else (n, d)),
        "has no record",
    ),
    "fewer elements": (
        rezipped(lambda n, d: (n, d[:-4] if n.endswith("data/0") else d)),
        "has 92 bytes",
    ),
    "big-endian": (
        rezipped(lambda n, d: (n, b"big" if n.endswith("byteorder") else d)),
        "says 'big'",
    ),
    "another pickle": (
        rezipped(lambda n, d: (n, pickle.dumps(7) if n.endswith("data.pkl") else d)),
        "expected a strided tensor",
    ),
    "a broken pickle": (
        rezipped(lambda n, d: (n, d[:-9] if n.endswith("data.pkl") else d)),
        "pickle|ends|byte",
    ),
    "longer strides": (
        repickled(b"K\x06K\x01\x86", b"K\x07K\x01\x86"),
        "end at byte",
    ),
    "a later start": (
        repickled(b"QK\x00", b"QK\x01"),
        "end at byte",
    ),
    "directory elsewhere": (
        GOOD[: END + 16] + struct.pack("<I", 5) + GOOD[END + 20 :],
        "two end records differ",
    ),
    "more entries": (
        GOOD[: END + 10] + struct.pack("<H", 60000) + GOOD[END + 12 :],
        "two end records differ",
    ),
    "a comment": (GOOD[: END + 20] + struct.pack("<H", 1) + GOOD[END + 22 :], "directory"),
}


@pytest.mark.parametrize(("data", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_is_no_such_tensor_is_refused_when_it_is_wanted(
    data: bytes, message: str, folder: Path
) -> None:
    replaced(folder, data.ljust(96, b"\0") if len(data) < 96 else data)
    checkpoint = dormant.open_checkpoint(folder)
    model = torch.nn.ParameterDict({"w": torch.zeros(4, 6)})
    for attempt in (
        lambda: dormant.materialize(checkpoint["model.w"]),
        lambda: dormant.load(model, folder, unexpected="ignore", progress=False),
        lambda: checkpoint.verify(progress=False),
    ):
        with pytest.raises((ValueError, NotImplementedError), match=message) as caught:
            attempt()
        assert "__0_0.distcp" in str(caught.value)
    assert dormant.is_lazy(checkpoint["model.w"])
    assert not model["w"].any()
    assert checkpoint["model.b"].tolist() == [0, 1, 2]


def test_a_damaged_element_is_found_by_its_checksum(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    data = path.read_bytes()
    place = data.index(torch.arange(24.0).numpy().tobytes())
    path.write_bytes(data[: place + 9] + b"\x55" + data[place + 10 :])
    with pytest.raises(ValueError, match=r"data/0.*CRC"):
        dormant.open_checkpoint(folder).verify(progress=False)


def test_values_that_are_no_tensors_may_be_anything(folder: Path) -> None:
    def edit(metadata: Metadata) -> None:
        info = place(metadata, "step")[1]
        info.offset, info.length = 1, 10

    change(folder, edit)
    assert (
        dormant.open_checkpoint(folder).extra["step"]
        == ((folder / "__0_0.distcp").read_bytes()[1:11])
    )


@pytest.mark.parametrize(
    "paths",
    [
        {"note": ("a",), "step": ("a", "b")},
        {"note": ("a", "b"), "step": ("a",)},
        {"note": ("a", 10**12), "step": ("a", 1)},
        {"note": ("a", "b"), "step": ("a", 1)},
        {"step": ("a", 10**12)},
        {"step": ("note",)},
    ],
    ids=str,
)
def test_places_of_values_that_contradict_are_refused(
    paths: dict[str, tuple[Any, ...]], folder: Path
) -> None:
    change(folder, assigned("planner_data", {**metadata_of(folder).planner_data, **paths}))
    checkpoint = dormant.open_checkpoint(folder)
    with pytest.raises(ValueError, match="contradicts"):
        _ = checkpoint.extra


def test_unknown_keys_are_named(folder: Path) -> None:
    with pytest.raises(KeyError, match=r"no mapping 'optim'.*\['model'\]"):
        dormant.open_checkpoint(folder, key="optim")
