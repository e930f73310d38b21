"""Files of torch.save that are damaged or malicious: each is refused, and says where and why.

The files are built from raw bytes. The first two tests show that the builder makes files that both
PyTorch and dormant read, so the others fail for what they change and nothing else.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import dormant
from compare import assert_same_bits
from torch_bytes import (
    Call,
    Record,
    Storage,
    Tensor,
    archive,
    legacy_bytes,
    pickled,
    zip_bytes,
)

BYTES = struct.pack("<3f", 1.0, 2.0, 3.0)
STATE = {"a": Tensor(Storage("0", 3))}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.pt"
    path.write_bytes(data)
    return path


def records() -> list[Record]:
    return archive(STATE, {"0": BYTES})


def refused(folder: Path, data: bytes, *expected: str, error: type = ValueError) -> None:
    """Fails unless the file is refused with a message that has the path and each text."""
    path = write(folder, data)
    with pytest.raises(error) as caught:
        dormant.open_checkpoint(path)
    for text in (str(path), *expected):
        assert text in str(caught.value), f"{text!r} is not in {caught.value}"


def test_the_builder_makes_zip_files_that_pytorch_reads(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(records()))
    expected = torch.load(path)
    state = dict(dormant.open_checkpoint(path))
    dormant.materialize(state)
    assert expected["a"].tolist() == [1.0, 2.0, 3.0]
    assert_same_bits(expected["a"], state["a"])


def test_the_builder_makes_older_files_that_pytorch_reads(tmp_path: Path) -> None:
    state = {"a": Tensor(Storage("0", 3, fields=(None,)))}
    path = write(tmp_path, legacy_bytes(state, [("0", 3, BYTES)]))
    assert torch.load(path)["a"].tolist() == [1.0, 2.0, 3.0]
    assert dormant.open_checkpoint(path)["a"].tolist() == [1.0, 2.0, 3.0]


# What the zip directory says.


def test_a_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path, zip_bytes(records(), end=False), "no readable directory", "truncated")


@pytest.mark.parametrize("kept", [4, 30, 200, -1, -22, -23])
def test_a_file_cut_short(tmp_path: Path, kept: int) -> None:
    refused(tmp_path, zip_bytes(records())[:kept], "no readable directory")


def test_a_directory_of_absurd_size(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(records()))
    # A sparse file, whose directory would be 8 GiB.
    size = 8 << 30
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 5, 5, size, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, size, 1)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *(0xFFFF,) * 2, *(0xFFFFFFFF,) * 2, 0)
    with path.open("r+b") as file:
        file.seek(size)
        file.write(wide + locator + tail)
    with pytest.raises(ValueError, match=f"directory of {size} bytes"):
        dormant.open_checkpoint(path)


def test_a_record_under_two_names_of_one_archive(tmp_path: Path) -> None:
    twice = [*records(), Record("archive/data/0", BYTES)]
    refused(tmp_path, zip_bytes(twice), "two records 'archive/data/0'", "at bytes")


@pytest.mark.parametrize("before", [b"PK\x03\x04" + bytes(60), zip_bytes(records())])
def test_an_archive_behind_something_else(tmp_path: Path, before: bytes) -> None:
    """Of two archives torch.load would take the first, zipfile the second."""
    refused(tmp_path, before + zip_bytes(records()), f"{len(before)} bytes before the archive")


def test_records_that_overlap(tmp_path: Path) -> None:
    # The second storage's header and bytes lie inside the first one's bytes.
    inner = Record("archive/data/1", BYTES)
    hidden = zip_bytes([inner])[: 30 + len(inner.name) + len(BYTES)]
    state = {"a": Tensor(Storage("0", len(hidden) // 4)), "b": Tensor(Storage("1", 3))}
    outer = archive(state, {"0": hidden})
    place = zip_bytes(outer).index(hidden)
    file = zip_bytes([*outer, Record("archive/data/1", b"", directory={
        "offset": place, "stored": len(BYTES), "nbytes": len(BYTES), "crc": 0x9B0E0D69,
    })])  # fmt: skip
    crc = struct.unpack_from("<I", file, place + 14)[0]
    refused(tmp_path, file.replace(struct.pack("<I", 0x9B0E0D69), struct.pack("<I", crc)),
            "'archive/data/0' and 'archive/data/1' overlap", f"byte {place}")  # fmt: skip


@pytest.mark.parametrize(
    ("where", "field", "value", "message"),
    [
        ("both", "method", 8, "compression method 8"),
        ("both", "flags", 0x801, "encrypted"),
        ("directory", "stored", 11, "11 stored bytes"),
        ("directory", "attributes", 0x3C, "attributes of a folder"),
        ("directory", "method", 8, "compression method 8"),
        ("header", "method", 8, "compression method 8 in the header"),
        ("header", "nbytes", 13, "13 unpacked"),
        ("header", "stored", 11, "11 bytes in the header"),
        ("header", "crc", 1, "CRC 1"),
        ("header", "name", b"archive/data/1", "the name 'archive/data/1' in the header"),
        ("header", "magic", b"PK\x03\x05", "'PK\\x03\\x05'"),
        ("directory", "offset", 1, "a header, which begins with"),
        ("directory", "offset", 0xFFFFFF, "no room for a header"),
    ],
)
def test_a_directory_and_a_header_that_differ(
    tmp_path: Path, where: str, field: str, value: Any, message: str
) -> None:
    changed = records()
    record = next(record for record in changed if record.name == "archive/data/0")
    if where in ("both", "header"):
        record.header[field] = value
    if where in ("both", "directory"):
        record.directory[field] = value
    refused(tmp_path, zip_bytes(changed), "archive/data/0", "header is at byte", message)


def test_a_record_that_runs_into_the_directory(tmp_path: Path) -> None:
    changed = records()
    size = 1 << 20
    changed[-1].header |= {"stored": size, "nbytes": size}
    changed[-1].directory |= {"stored": size, "nbytes": size}
    refused(tmp_path, zip_bytes(changed), f"{size} bytes from byte", "an end before the directory")


@pytest.mark.parametrize(
    "name", ["../evil", "archive/../evil", "/etc/passwd", "archive\\..\\evil", "archive/a\0b"]
)
def test_a_name_that_leads_out_of_the_archive(tmp_path: Path, name: str) -> None:
    refused(tmp_path, zip_bytes([*records(), Record(name, b"x")]), "leaves the archive")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    changed = records()
    bad = {"name": b"archive/\xff"}
    refused(tmp_path, zip_bytes([*changed, Record("x", b"", bad, bad)]), "no readable directory")


def test_a_record_of_another_archive(tmp_path: Path) -> None:
    refused(
        tmp_path, zip_bytes([*records(), Record("other/data/0", BYTES)]), "'other/data/0'", "belong"
    )


def test_two_archives(tmp_path: Path) -> None:
    second = Record("second/data.pkl", pickled({}))
    refused(tmp_path, zip_bytes([*records(), second]), "2 of them named 'NAME/data.pkl'")


def test_a_zip_file_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path, zip_bytes([Record("readme.txt", b"hello")]), "0 of them named")


def test_a_compressed_archive(tmp_path: Path) -> None:
    plain = io.BytesIO(zip_bytes(records()))
    out = io.BytesIO()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(out, "w", 8) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    refused(tmp_path, out.getvalue(), "compression method 8", "stored bytes (method 0)")


def test_numbers_of_the_other_byte_order(tmp_path: Path) -> None:
    file = zip_bytes(archive(STATE, {"0": BYTES}, byteorder=b"big"))
    refused(tmp_path, file, "'archive/byteorder'", "'big'", "expected 'little'")


def test_a_byte_order_that_takes_long_to_read(tmp_path: Path) -> None:
    file = zip_bytes(archive(STATE, {"0": BYTES}, byteorder=b"little" * 100))
    refused(tmp_path, file, "'archive/byteorder'", "600 bytes, expected at most 64")


# What the pickle says.


def refused_state(folder: Path, state: object, *expected: str, error: type = ValueError) -> None:
    refused(folder, zip_bytes(archive(state, {"0": BYTES})), *expected, error=error)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (torch.hub.load, "torch.hub.load"),
        (pickle.loads, "pickle.loads"),
    ],
)
def test_a_pickle_that_calls_something_else(tmp_path: Path, function: Any, name: str) -> None:
    marker = tmp_path / "called"
    arguments = (f"touch {marker}",)
    state = {**STATE, "deceit": Call(function, arguments)}
    path = write(tmp_path, zip_bytes(archive(state, {"0": BYTES})))
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint["a"].tolist() == [1.0, 2.0, 3.0]
    record = checkpoint.extra["deceit"]
    assert str(record.callable) == name
    assert record.arguments == arguments
    assert not marker.exists()
    with pytest.raises(ValueError, match=f"weights-only loading at byte .* for {name}"):
        dormant.open_checkpoint(path, foreign="error")


def test_a_state_dict_that_a_call_would_make(tmp_path: Path) -> None:
    refused_state(tmp_path, Call(eval, ("{}",)), "object of builtins.eval", "expected a mapping")


def test_an_object_that_the_user_allows_is_beside_the_tensors(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(archive({**STATE, "path": Path("x")}, {"0": BYTES})))
    kind = type(Path("x"))
    with torch.serialization.safe_globals([(kind, f"pathlib.{kind.__name__}"), kind]):
        assert dormant.open_checkpoint(path).extra == {"path": Path("x")}


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (torch._utils._rebuild_sparse_tensor, "a sparse tensor"),
        (torch._utils._rebuild_qtensor, "a quantized tensor"),
        (torch._utils._rebuild_nested_tensor, "a nested tensor"),
        (torch._utils._rebuild_meta_tensor_no_storage, "a tensor of the meta device"),
    ],
)
def test_tensors_that_are_no_views_of_bytes(tmp_path: Path, function: Any, what: str) -> None:
    refused_state(
        tmp_path, {"a": Call(function)}, what, "expected strided", error=NotImplementedError
    )


@pytest.mark.parametrize("kind", [torch.sparse.FloatTensor, torch.sparse.ByteTensor])
def test_a_class_of_sparse_tensors_leaves_nothing_behind(tmp_path: Path, kind: Any) -> None:
    refused_state(tmp_path, {"a": Call(kind, (2, 3))}, "a sparse tensor", error=NotImplementedError)
    since_2_15 = getattr(torch._utils, "_get_sparse_tensors_to_validate", None)
    assert not (since_2_15() if since_2_15 else torch._utils._sparse_tensors_to_validate)


METHODS = "items keys values get stride storage_offset untyped_storage numel is_conj is_neg detach"
SHADOWS = dict.fromkeys(METHODS.split(), OrderedDict)


def test_attributes_do_not_stand_in_place_of_methods(tmp_path: Path) -> None:
    tensor = Call(
        torch._tensor._rebuild_from_type_v2,
        (
            torch._utils._rebuild_tensor_v2,
            torch.Tensor,
            (Storage("0", 3), 0, (3,), (1,), False, OrderedDict()),
            SHADOWS,
        ),
    )
    inner = Call(OrderedDict, ([["a", tensor]],), {**SHADOWS, "_metadata": OrderedDict})
    other = Call(OrderedDict, (), SHADOWS)
    outer = Call(OrderedDict, ([["model", inner], ["other", other]],), SHADOWS)
    path = write(tmp_path, zip_bytes(archive(outer, {"0": BYTES})))
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint["a"].tolist() == [1.0, 2.0, 3.0]
    assert checkpoint.extra == {"other": {}}
    assert checkpoint._metadata is None


def test_a_tensor_that_is_made_up(tmp_path: Path) -> None:
    refused_state(
        tmp_path, {"a": Call(torch.Tensor, (2, 2))}, "tensor 'a'", error=NotImplementedError
    )


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (Storage("1", 3), "storage '1' has no record 'data/1'"),
        (Storage("../data.pkl", 3), "has no record"),
        (Storage("0", 4), "has 12 bytes, expected 16"),
        (Storage("0", 2), "has 12 bytes, expected 8"),
        (Storage("0", 3, torch.DoubleStorage), "has 12 bytes, expected 24"),
        (Storage("0", -3), "storage '0' has int -3 elements"),
        (Storage("0", 1 << 62), "has int 4611686018427387904 elements"),
        (Storage("0", 1 << 80), "has int of 88 bits elements"),
        (Storage("0", 3.0), "storage '0' has float elements"),
        (Storage("0", True), "storage '0' has bool"),
        (Storage(0, 3), "a storage has key int 0"),
        (Storage(["0"], 3), "a storage has key list"),
        (Storage("0", 3, "torch.FloatStorage"), "a storage has type str"),
        (Storage("0", 3, fields=(None, None)), "expected a tuple of 5 or 6"),
        (Storage("0", 3, prefix="module"), "expected one to a storage"),
    ],
)
def test_a_storage_that_is_not_there(tmp_path: Path, storage: Storage, message: str) -> None:
    refused_state(tmp_path, {"a": Tensor(storage)}, "archive/data.pkl", message)


def test_a_storage_of_two_types(tmp_path: Path) -> None:
    state = {"a": Tensor(Storage("0", 3)), "b": Tensor(Storage("0", 3, torch.IntStorage))}
    refused_state(tmp_path, state, "storage '0' has 3 Int here, 3 Float before")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "message"),
    [
        ((4,), (1,), 0, "end at byte 16 of storage '0', which has 12 bytes"),
        ((3,), (2,), 0, "end at byte 20"),
        ((3,), (1,), 1, "end at byte 16"),
        ((1,), (1,), 3, "end at byte 16"),
        ((2, 2), (1 << 40, 1), 0, "end at byte"),
        ((1 << 40,), (1 << 40,), 0, "end at byte"),
        ((1 << 62, 1 << 62), (1, 1), 0, "end at byte"),
        ((3,), (-2,), 2, "int -2 among its strides"),
        ((1 << 40, 1 << 40), (0, 0), 0, "more elements than can be"),
        ((0,), (1,), 4, "end at byte 16"),
        ((-3,), (1,), 0, ""),
        ((3,), (1,), -1, "-1"),
        ((3,), (1,), 1 << 70, ""),
        ((3,), (1, 1), 0, ""),
        ((1,) * 65, (1,) * 65, 0, "65 dimensions, expected at most 64"),
        (("3",), (1,), 0, ""),
    ],
)
def test_a_tensor_that_its_storage_does_not_hold(
    tmp_path: Path, size: Any, stride: Any, offset: int, message: str
) -> None:
    refused_state(tmp_path, {"a": Tensor(Storage("0", 3), size, stride, offset)}, message)


def test_thousands_of_dimensions(tmp_path: Path) -> None:
    ones = (1,) * 5000
    refused_state(tmp_path, {"a": Tensor(Storage("0", 3), ones, ones)}, "5000 dimensions")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Tensor(Storage("0", 3)), "contains a Tensor"),
        ([1, 2], "contains a list"),
        ({0: Tensor(Storage("0", 3))}, "contains a tensor under int 0"),
        ({"": Tensor(Storage("0", 3))}, "contains a tensor under str ''"),
        ({"\ud800": Tensor(Storage("0", 3))}, "contains a tensor under str '\\xed\\xa0\\x80'"),
        ({"epoch": 3}, "['epoch']", ),
        ({"m": STATE, "ema": STATE}, "['m', 'ema']"),
    ],
)  # fmt: skip
def test_what_is_no_mapping_of_names_to_tensors(tmp_path: Path, value: Any, message: str) -> None:
    refused_state(tmp_path, value, message)


def nested(depth: int, *, double: bool) -> bytes:
    """A dict with a tuple of tuples as a key, whose hash visits each of them."""
    step = b"q\x01h\x01h\x01\x86" if double else b"\x85"
    return b"\x80\x02}(" + b")" + step * depth + b"K\x01u."


@pytest.mark.parametrize("double", [False, True], ids=["deep", "doubled"])
@pytest.mark.parametrize("depth", [90, 3_000_000])
def test_keys_that_nest_without_end(tmp_path: Path, depth: int, double: bool) -> None:
    data = nested(min(depth, 100_000) if double else depth, double=double)
    message = "expected tensors by name" if depth == 90 else "tuples nested deeper than 1000"
    refused(tmp_path, zip_bytes([Record("archive/data.pkl", data)]), message)


def test_lists_that_nest_without_end(tmp_path: Path) -> None:
    depth = 100_000
    inner = b"]" * depth + b"a" * (depth - 1)
    data = pickled(STATE)[:-2]  # without SETITEM, STOP
    data = data.removesuffix(b"s") + b"sX\x05\x00\x00\x00extra" + inner + b"s."
    path = write(
        tmp_path, zip_bytes([Record("archive/data.pkl", data), Record("archive/data/0", BYTES)])
    )
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint["a"].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="nests containers deeper"):
        _ = checkpoint.extra


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02N",
        b"\x80\x02}X\xff\xff\xff\xffa.",
        b"\x80\x02h\x00.",
        b"\x80\x02u.",
        b"\x80\x02\x85.",
        b"\x80\x02R.",
        b"\x80\x04\x95\x09\x00\x00\x00\x00\x00\x00\x00}.",
        b"\x80\x02cos",
        b"\x80\x02}X\x02\x00\x00\x00\xff\xfeK\x01s.",
        b"\xff" * 64,
    ],
)
def test_a_pickle_that_is_none(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path, zip_bytes([Record("archive/data.pkl", data)]), "'archive/data.pkl'", "byte")


# The older layout.

OLD = {"a": Tensor(Storage("0", 3, fields=(None,)))}
ONE = [("0", 3, BYTES)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 1}, "begins with"),
        ({"protocol": 1000}, "protocol version int 1000, expected 1001"),
        ({"protocol": [1001]}, "protocol version list, expected 1001"),
        ({"system": {"little_endian": False}}, "'little_endian': bool False"),
        ({"system": ["x"]}, "'little_endian': nothing"),
        ({"system": {"little_endian": 1}}, "'little_endian': int 1, expected True"),
        ({"keys": ["1"]}, "only one of the two has ['0', '1']"),
        ({"keys": []}, "only one of the two has ['0']"),
        ({"keys": ["0", "0"]}, "lists 2 storages"),
        ({"keys": {"0": 1}}, "the list of storages is a dict"),
        ({"keys": [0]}, "expected a list of text"),
    ],
)
def test_an_older_file_with_another_head(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    refused(tmp_path, legacy_bytes(OLD, ONE, **changes), message)


@pytest.mark.parametrize("missing", [1, 12, 13, 19, 20, 40, 150])
def test_an_older_file_cut_short(tmp_path: Path, missing: int) -> None:
    refused(tmp_path, legacy_bytes(OLD, ONE)[:-missing], "byte")


def test_an_older_file_with_more_behind_it(tmp_path: Path) -> None:
    file = legacy_bytes(OLD, ONE)
    refused(
        tmp_path,
        file + b"x",
        f"has {len(file) + 1} bytes",
        f"last storage ends at byte {len(file)}",
    )


@pytest.mark.parametrize("numel", [2, 4, -1, 1 << 62])
def test_an_older_file_with_another_number_of_elements(tmp_path: Path, numel: int) -> None:
    file = legacy_bytes(OLD, [("0", numel, BYTES)])
    refused(tmp_path, file, f"has {numel} elements, but its tensors expect 3")


def test_an_older_storage_larger_than_the_file(tmp_path: Path) -> None:
    huge = {"a": Tensor(Storage("0", 1 << 60, fields=(None,)))}
    refused(tmp_path, legacy_bytes(huge, [("0", 1 << 60, BYTES)]), "the whole file has")


@pytest.mark.parametrize(
    "view", [("v", 2, 2), ("v", -1, 1), ("v", 0, 1 << 80), ("v", 0), (1, 0, 1), "v", ("v", 0, 1.0)]
)
def test_an_older_view_that_its_storage_does_not_hold(tmp_path: Path, view: Any) -> None:
    state = {"a": Tensor(Storage("0", 3, fields=(view,)), (1,))}
    refused(tmp_path, legacy_bytes(state, ONE), "a view of storage '0'")


def test_an_older_tensor_beyond_its_view(tmp_path: Path) -> None:
    state = {"a": Tensor(Storage("0", 3, fields=(("v", 1, 2),)), (3,))}
    refused(tmp_path, legacy_bytes(state, ONE), "end at byte 16 of storage '0'")


def test_an_older_file_that_pickles_a_module_class(tmp_path: Path) -> None:
    state = {"a": Storage("0", 3, prefix="module")}
    refused(tmp_path, legacy_bytes(state, ONE), "expected one to a storage")


def test_the_oldest_layout_names_what_reads_it(tmp_path: Path) -> None:
    tar = b"storages".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")
    refused(tmp_path, tar, "tar layout", "torch.load", error=NotImplementedError)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (
            pickle.dumps({"a": 1}),
            "expected a safetensors file, a GGUF file or a file of torch.save",
        ),
        (b"\x93NUMPY\x01\x00", "expected a safetensors file, a GGUF file"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, data: bytes, message: str) -> None:
    refused(tmp_path, data, message)


# What happens after opening.


def test_a_file_that_was_replaced_after_opening_is_still_read(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(records()))
    expected = torch.load(path, weights_only=True)["a"]
    tensor = dormant.open_checkpoint(path)["a"]
    other = tmp_path / "other"
    other.write_bytes(zip_bytes(archive(STATE, {"0": bytes(12)})))
    other.replace(path)
    dormant.materialize(tensor)
    assert torch.equal(tensor, expected)


def test_a_file_that_was_written_to_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(records()))
    tensor = dormant.open_checkpoint(path)["a"]
    path.write_bytes(zip_bytes(archive(STATE, {"0": bytes(12)})))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"model\.pt"):
        dormant.materialize(tensor)
    assert dormant.is_lazy(tensor)


def test_a_file_that_was_truncated_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(records()))
    tensor = dormant.open_checkpoint(path)["a"]
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ValueError, match=r"model\.pt"):
        dormant.materialize(tensor)
    assert dormant.is_lazy(tensor)


def test_a_crc_that_does_not_fit_is_found_by_verify(tmp_path: Path) -> None:
    file = zip_bytes(records())
    place = file.index(BYTES)
    path = write(tmp_path, file[:place] + b"\xff" + file[place + 1 :])
    checkpoint = dormant.open_checkpoint(path)
    with pytest.raises(ValueError, match="1 of 3 records") as caught:
        checkpoint.verify()
    assert f"'archive/data/0' at byte {place} of {path}" in str(caught.value)


def test_what_verify_reads_must_not_change_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(records()))
    checkpoint = dormant.open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ValueError, match=r"model\.pt"):
        checkpoint.verify()


def test_files_changed_at_random_are_refused_or_equal_torch_load() -> None:
    # In a process of its own, where a crash is a failure like any other.
    script = Path(__file__).resolve().parent.parent / "fuzz" / "torch_zip.py"
    done = subprocess.run(
        [sys.executable, script, "--runs", "400", "--seed", "7"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("400 inputs, ")


def test_an_empty_state_dict_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path, zip_bytes(archive(OrderedDict(), {})))
    assert torch.load(path) == {}
    assert dict(dormant.open_checkpoint(path)) == {}
