"""Which files `open_checkpoint` opens at a path."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import pytest
import torch
from written import STATE, assert_holds, index, write

import dormant


def test_a_single_file(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    assert_holds(checkpoint, STATE)
    assert_holds(dormant.open_checkpoint(str(path)), STATE)
    assert checkpoint.files == (path,)
    assert checkpoint.nbytes == sum(t.numel() * t.element_size() for t in STATE.values())


def test_the_contents_tell_the_format_where_the_name_does_not(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pt"):
        file = write(STATE, tmp_path / name)
        assert_holds(dormant.open_checkpoint(file.rename(tmp_path / "weights")), STATE)


def test_a_header_that_begins_like_a_pickle(tmp_path: Path) -> None:
    # The first byte is that of a safetensors header's length, here 0x80.
    file = write({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    (tmp_path / "weights").write_bytes(
        (0x80).to_bytes(8, "little") + data[8 : 8 + size].ljust(0x80) + data[8 + size :]
    )
    assert_holds(dormant.open_checkpoint(tmp_path / "weights"), {"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("model.safetensors.index.json", "model-{}-of-2.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-{}-of-2.bin"),
        ("other.safetensors.index.json", "other-{}.safetensors"),
    ],
)
def test_an_index_and_its_folder(tmp_path: Path, name: str, shards: str) -> None:
    names = list(STATE)
    parts = [{n: STATE[n] for n in names[:2]}, {n: STATE[n] for n in names[2:]}]
    file = index(tmp_path, name, {shards.format(i): part for i, part in enumerate(parts)})
    for opened in (dormant.open_checkpoint(file), dormant.open_checkpoint(tmp_path)):
        assert_holds(opened, STATE)
        assert opened.metadata["total_size"] == 1
        assert len(opened.files) == 2
        entry = opened.entries[names[2]]
        assert entry.file == tmp_path / shards.format(1)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_that_does_not_fit_its_files(tmp_path: Path, suffix: str) -> None:
    one, two = {"a": torch.ones(1), "b": torch.ones(1)}, {"c": torch.ones(1)}
    shards = {f"1.{suffix}": one, f"2.{suffix}": two}
    file = index(tmp_path, f"model.{suffix}.index.json", shards)

    def rewrite(**weights: str) -> None:
        file.write_text(json.dumps({"metadata": {}, "weight_map": weights}))

    first, second = shards
    rewrite(a=second, b=first, c=second)
    with pytest.raises(ValueError, match=r"'a' is in .*1\..*, expected in .*2\."):
        dormant.open_checkpoint(file)
    rewrite(a=first, b=first, c=second, d=second)
    with pytest.raises(ValueError, match=r"'d' is in no file, expected in .*2\."):
        dormant.open_checkpoint(file)
    rewrite(a=first, c=second)
    with pytest.raises(ValueError, match=r"'b' of .*1\..* is not in the index"):
        dormant.open_checkpoint(file)
    rewrite(a=first, b=first, c=second)
    write({**two, "a": torch.zeros(1)}, tmp_path / second)
    with pytest.raises(ValueError, match=r"tensor 'a' is in two files"):
        dormant.open_checkpoint(file)


def test_a_folder_is_searched_in_the_order_of_transformers(tmp_path: Path) -> None:
    def only(value: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((2,), value)}

    def opened() -> float:
        return float(dormant.open_checkpoint(tmp_path)["a"][0])

    write(only(6), tmp_path / "weights.pt")
    assert opened() == 6
    write(only(5), tmp_path / "consolidated.00.pth")
    assert opened() == 5
    index(tmp_path, "pytorch_model.bin.index.json", {"part.bin": only(4)})
    assert opened() == 4
    write(only(3), tmp_path / "pytorch_model.bin")
    assert opened() == 3
    index(tmp_path, "model.safetensors.index.json", {"part.safetensors": only(2)})
    assert opened() == 2
    write(only(1), tmp_path / "model.safetensors")
    assert opened() == 1


def test_a_folder_of_links(tmp_path: Path) -> None:
    """What a download cache looks like: links to files whose names say nothing."""
    parts = {"1.safetensors": {"a": torch.ones(2)}, "2.safetensors": {"b": torch.zeros(2)}}
    index(tmp_path / "snapshot", "model.safetensors.index.json", parts)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted((tmp_path / "snapshot").iterdir())):
        blob = file.rename(tmp_path / "blobs" / f"{number:064x}")
        file.symlink_to(Path("..") / "blobs" / blob.name)
    assert_holds(
        dormant.open_checkpoint(tmp_path / "snapshot"),
        {**parts["1.safetensors"], **parts["2.safetensors"]},
    )


def test_a_folder_with_several_choices(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"more than one checkpoint: a\.pt, b\.pt\. Pass the path"):
        dormant.open_checkpoint(tmp_path)


def test_a_folder_with_nothing_to_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"contains no checkpoint; files: \['config\.json'\]"):
        dormant.open_checkpoint(tmp_path)


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        dormant.open_checkpoint(tmp_path / "absent.pt")
    assert caught.value.errno == 2
    with pytest.raises(ValueError, match="got no path"):
        dormant.open_checkpoint([])


def test_an_empty_path_is_not_the_current_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert_holds(dormant.open_checkpoint("."), STATE)
    with pytest.raises(ValueError, match="got an empty path"):
        dormant.open_checkpoint("")


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    loop = tmp_path / "loop.pt"
    loop.symlink_to(loop)
    for refused, code in ((loop, errno.ELOOP), (tmp_path / ("x" * 300), errno.ENAMETOOLONG)):
        with pytest.raises(OSError, match="open_checkpoint: cannot access") as caught:
            dormant.open_checkpoint(refused)
        assert caught.value.errno == code
    with pytest.raises(ValueError, match=r"'a\\x00b' is not a path"):
        dormant.open_checkpoint("a\0b")


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "h5py"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_what_is_often_taken_for_a_checkpoint_is_named(
    tmp_path: Path, name: str, data: bytes, hint: str
) -> None:
    # A header of safetensors would need the length that these bytes spell.
    (tmp_path / name).write_bytes(data)
    if name == "model.safetensors" and data[4:8] == bytes(4):
        hint = "expected at most"
    with pytest.raises(ValueError, match=hint):
        dormant.open_checkpoint(tmp_path / name)


def test_a_folder_of_distributed_checkpoints_needs_its_metadata(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ValueError, match="contains no checkpoint"):
        dormant.open_checkpoint(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="not a valid pickle"):
        dormant.open_checkpoint(tmp_path)


def test_an_index_that_fits_nothing_is_told_in_few_words(tmp_path: Path) -> None:
    file = index(tmp_path, "model.safetensors.index.json", {"1.safetensors": {"a": torch.ones(1)}})
    names = {f"tensor{i}": "1.safetensors" for i in range(3000)}
    file.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ValueError, match="does not match its files in 3001 tensors") as caught:
        dormant.open_checkpoint(file)
    assert len(str(caught.value)) < 10_000


def test_several_paths_are_one_mapping(tmp_path: Path) -> None:
    names = list(STATE)
    first = write({n: STATE[n] for n in names[:1]}, tmp_path / "first.safetensors")
    second = write({n: STATE[n] for n in names[1:]}, tmp_path / "second.pt")
    checkpoint = dormant.open_checkpoint([second, first])
    assert_holds(checkpoint, STATE)
    assert list(checkpoint) == [*names[1:], names[0]]
    assert checkpoint.files == (second, first)
    assert checkpoint.verify().tensors == len(STATE)


def test_a_name_in_two_paths(tmp_path: Path) -> None:
    first = write({"a": torch.ones(1)}, tmp_path / "first.pt")
    second = write({"a": torch.ones(1)}, tmp_path / "second.pt")
    with pytest.raises(ValueError, match=r"found 1 tensor in two.*'a' in .*first\.pt and .*second"):
        dormant.open_checkpoint([first, second])


# Variants, and accelerate's index


@pytest.mark.parametrize(
    "shards",
    ["model.fp16-{}-of-2.safetensors", "model-{}-of-2.fp16.safetensors"],
    ids=["transformers", "older diffusers"],
)
def test_a_sharded_variant(tmp_path: Path, shards: str) -> None:
    names = list(STATE)
    parts = [{n: STATE[n] for n in names[:2]}, {n: STATE[n] for n in names[2:]}]
    files = {shards.format(i): part for i, part in enumerate(parts)}
    file = index(tmp_path, "model.safetensors.index.fp16.json", files)
    for opened in (dormant.open_checkpoint(file), dormant.open_checkpoint(tmp_path)):
        assert_holds(opened, STATE)


@pytest.mark.parametrize(
    ("plain", "variant"),
    [
        ("other.safetensors", "other.fp16.safetensors"),
        ("other.safetensors", "other.safetensors.index.fp16.json"),
        ("other.bin.index.json", "other.bin.index.fp16.json"),
        ("other.bin.index.json", "other.fp16.bin"),
    ],
)
def test_the_checkpoint_without_a_variant_is_taken(
    tmp_path: Path, plain: str, variant: str
) -> None:
    other = {"embed.weight": torch.ones(1)}
    for name, state in ((plain, STATE), (variant, other)):
        kind = ".bin" if ".bin" in name else ".safetensors"
        if name.endswith(".json"):
            tag = ".fp16" if "fp16" in name else ""
            index(tmp_path, name, {f"other{tag}-1-of-1{kind}": state})
        else:
            write(state, tmp_path / name)
    assert_holds(dormant.open_checkpoint(tmp_path), STATE)


def test_several_variants_are_named(tmp_path: Path) -> None:
    index(tmp_path, "model.safetensors.index.fp16.json", {"model.fp16-1-of-1.safetensors": STATE})
    write(STATE, tmp_path / "model.bf16.safetensors")
    with pytest.raises(ValueError, match="more than one checkpoint") as caught:
        dormant.open_checkpoint(tmp_path)
    assert "model.safetensors.index.fp16.json" in str(caught.value)
    index(tmp_path, "model.safetensors.index.bf16.json", {"model.bf16-1-of-1.safetensors": STATE})
    with pytest.raises(ValueError, match=r"index\.bf16\.json, model\.safetensors\.index\.fp16"):
        dormant.open_checkpoint(tmp_path)


def test_the_flat_index_of_accelerate(tmp_path: Path) -> None:
    names = list(STATE)
    homes = {name: f"p{place % 2}.bin" for place, name in enumerate(names)}
    for file in ("p0.bin", "p1.bin"):
        write({n: STATE[n] for n in names if homes[n] == file}, tmp_path / file)
    path = tmp_path / "weight_map.index.json"
    path.write_text(json.dumps(homes))
    for opened in (dormant.open_checkpoint(path), dormant.open_checkpoint(tmp_path)):
        assert_holds(opened, STATE)
        assert opened.metadata == {}


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({"w": "../p.bin"}, "a path that leaves the folder"),
        ({"w": "/p.bin"}, "an absolute path"),
        ({"w": "absent.bin"}, "1 of 1 files are missing"),
        ({"": "p.bin"}, "a tensor without a name"),
        ({"w": "p.bin", "v": ["p.bin"]}, '"weight_map" is missing'),
        ({"w": "p.bin", "v": 1}, '"weight_map" is missing'),
        ({"v": "p.bin"}, "does not match its files"),
    ],
)
def test_a_flat_index_is_checked_like_any_other(
    tmp_path: Path, document: dict[str, object], cause: str
) -> None:
    folder = tmp_path / "inside"
    for place in (tmp_path, folder):
        write({"w": torch.ones(1)}, place / "p.bin")
    (folder / "i.index.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=cause):
        dormant.open_checkpoint(folder / "i.index.json")
