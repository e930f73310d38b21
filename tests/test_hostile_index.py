"""Indices that are damaged or malicious: each is refused, and says where and why."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

import dormant
from safetensors_bytes import described, write_safetensors

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files: `a` and `b` in the first, `c` in the second."""
    write_safetensors(
        tmp_path / FIRST, {"a": described("U8", [1], 0, 1), "b": described("U8", [1], 1, 2)}, b"12"
    )
    write_safetensors(tmp_path / SECOND, {"c": described("U8", [1], 0, 1)}, b"3")
    return tmp_path


def index(folder: Path, document: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def refused(path: Path, *says: str, error: type = ValueError) -> None:
    with pytest.raises(error) as caught:
        dormant.open_checkpoint(path)
    for text in (str(path), *says):
        assert text in str(caught.value), f"{text!r} is not in {caught.value}"


def weights(**files: str) -> dict[str, object]:
    return {"weight_map": {"a": FIRST, "b": FIRST, "c": SECOND} | files}


def test_a_sound_index_is_accepted(folder: Path) -> None:
    path = index(folder, weights() | {"metadata": {"total_size": 3, "by": {"x": [1.5, None]}}})
    checkpoint = dormant.open_checkpoint(path)
    dormant.materialize(tensors := dict(checkpoint))
    assert {name: tensor.item() for name, tensor in tensors.items()} == {"a": 49, "b": 50, "c": 51}
    assert checkpoint.metadata["total_size"] == 3
    assert checkpoint.metadata["by"] == {"x": [1.5, None]}


def test_links_within_a_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (folder / SECOND).rename(blobs / "0123")
    (folder / SECOND).symlink_to(Path("blobs", "0123"))
    assert set(dormant.open_checkpoint(index(folder, weights()))) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        ("/etc/passwd", "an absolute path"),
        ("../model.safetensors", "a path that leaves the folder"),
        ("sub/../../model.safetensors", "a path that leaves the folder"),
        ("..", "a path that leaves the folder"),
        ("", "an empty path"),
        (f"./{SECOND}", "a path that is not normalized"),
        (f"{SECOND}/", "a path that is not normalized"),
        (f"{SECOND}\0", "a path with a null character"),
    ],
)
def test_a_file_must_be_beside_the_index(folder: Path, shard: str, says: str) -> None:
    refused(index(folder, weights(c=shard)), "tensor 'c'", "before byte", says)


@pytest.mark.parametrize(
    ("value", "says"),
    [(1, "has 1"), (None, "has null"), ([FIRST], "has an array"), ({}, "has an object")],
)
def test_a_file_is_named_by_a_string(folder: Path, value: object, says: str) -> None:
    path = index(folder, {"weight_map": {"a": FIRST, "b": value}})
    refused(path, "tensor 'b'", says, "expected the name of its file")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("", "starts with nothing at byte 0"),
        ("[]", "expected '{'"),
        ('{"weight_map":{"a":"x"', "is not JSON at byte"),
        ('{"weight_map":{}} x', "is not JSON at byte"),
        ('{"metadata":{}}', '"weight_map" is missing'),
        ('{"weight_map":[]}', "'weight_map' is an array"),
        ('{"weight_map":{},"metadata":3}', "'metadata' is 3"),
        ('{"weight_map":{},"weight_map":{}}', "names 'weight_map' twice"),
        ('{"weight_map":{"a":"x","a":"y"}}', "names 'a' twice"),
        ('{"weight_map":{"":"x"}}', "a tensor without a name"),
        ('{"weight_map":{},"metadata":{"a":' + "[" * 100_000, "nested deeper than 16"),
        ('{"weight_map":{},"metadata":{"a":NaN}}', "is not JSON"),
    ],
)
def test_a_document_of_another_form_is_refused(folder: Path, document: str, says: str) -> None:
    refused(index(folder, document), says)


def test_absent_files_are_all_listed(folder: Path) -> None:
    path = index(folder, weights(x="3.safetensors", y="4.safetensors"))
    refused(path, "2 of 4 files are missing: '3.safetensors', '4.safetensors'", str(folder))


def test_a_folder_for_a_file_is_absent(folder: Path) -> None:
    (folder / "sub").mkdir()
    refused(index(folder, weights(x="sub")), "1 of 3 files are missing: 'sub'")


def test_a_tensor_that_its_file_lacks(folder: Path) -> None:
    refused(index(folder, weights(d=SECOND)), "'d' is in no file", SECOND)


def test_a_tensor_that_another_file_has(folder: Path) -> None:
    refused(index(folder, weights(b=SECOND)), "'b' is in", FIRST, f"expected in {folder / SECOND}")


def test_a_tensor_that_the_index_lacks(folder: Path) -> None:
    path = index(folder, {"weight_map": {"a": FIRST, "c": SECOND}})
    refused(path, "'b' of", FIRST, "is not in the index")


def test_a_tensor_in_two_files(folder: Path) -> None:
    third = write_safetensors(
        folder / "3.safetensors",
        {"c": described("U8", [1], 0, 1), "d": described("U8", [1], 1, 2)},
        b"45",
    )
    path = index(folder, weights(d=third.name))
    refused(path, "'c' is in two files", SECOND, third.name)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"damaged, and longer than eight bytes")
    path = index(folder, weights())
    with pytest.raises(ValueError, match=SECOND):
        dormant.open_checkpoint(path)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_refusal_leaves_nothing_open(folder: Path) -> None:
    path = index(folder, weights(d=SECOND))
    gc.collect()
    before = open_files()
    for _ in range(3):
        refused(path)
    gc.collect()  # what was raised refers to frames that refer to it
    assert open_files() == before


def test_files_of_one_index_stay_open_only_as_long_as_needed(folder: Path) -> None:
    gc.collect()
    before = open_files()
    checkpoint = dormant.open_checkpoint(index(folder, weights()))
    tensor = checkpoint["c"]
    assert open_files() == before + 2
    del checkpoint
    assert open_files() == before + 1
    copied = tensor.to(torch.float32)
    dormant.materialize(copied)
    del tensor
    assert copied.item() == 51.0
    assert open_files() == before
