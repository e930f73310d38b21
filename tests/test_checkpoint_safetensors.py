"""What comes out of safetensors files equals what the format's own library reads, bit for bit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import dormant
from compare import assert_same_bits
from dormant import _C
from safetensors_bytes import described, safetensors_bytes, write_safetensors

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "C64": torch.complex64,
}
SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {"BOOL": 1, "F8_E8M0": 1}


def every_dtype() -> dict[str, torch.Tensor]:
    """A tensor of random bits for each dtype."""
    tensors = {
        name: torch.randint(0, 256, (15 * dtype.itemsize,), dtype=torch.uint8)
        .view(dtype)
        .view(3, 5)
        for name, dtype in DTYPES.items()
    }
    return tensors | {"BOOL": torch.tensor([True, False, True])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(every_dtype(), path)
    return path


def test_every_dtype_equals_the_library(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    tensors = dict(checkpoint)
    assert all(dormant.is_lazy(tensor) for tensor in tensors.values())
    dormant.materialize(tensors.values())
    expected = load_file(path)
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert_same_bits(tensor, tensors[name], name)


def test_exponents_alone_are_a_dtype(tmp_path: Path) -> None:
    # The library's torch interface does not know this dtype, but its files may have it.
    path = write_safetensors(
        tmp_path / "m.safetensors", {"a": described("F8_E8M0", [4], 0, 4)}, b"\x00\x7f\x80\xff"
    )
    tensor = dormant.open_checkpoint(path)["a"]
    dormant.materialize(tensor)
    expected = torch.tensor([0, 0x7F, 0x80, 0xFF], dtype=torch.uint8)
    assert_same_bits(expected.view(torch.float8_e8m0fnu), tensor, "a")


@pytest.mark.parametrize("mmap", ["auto", "always", "never"])
@pytest.mark.parametrize("padding", range(8))
def test_misaligned_tensors_equal_the_library(
    tmp_path: Path, padding: int, mmap: Literal["auto", "always", "never"]
) -> None:
    values = torch.randn(1000)
    header = json.dumps({"a": described("F32", [1000], 1, 4001), "b": described("U8", [1], 0, 1)})
    path = write_safetensors(
        tmp_path / "m.safetensors", header + " " * padding, b"x" + values.numpy().tobytes()
    )
    tensor = dormant.open_checkpoint(path)["a"]
    _C.materialize([tensor], "exact", None, mmap=mmap)
    assert_same_bits(values, tensor, f"{padding} bytes of padding")


def test_scalars_empty_tensors_names_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {
        "scalar": torch.tensor(3.5),
        "none": torch.empty(0, 7),
        "naïve.重み 🤗\n": torch.arange(3),
    }
    save_file(tensors, path, metadata={"format": "pt", "ключ": "значение"})
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint.metadata == {"format": "pt", "ключ": "значение"}
    dormant.materialize(found := dict(checkpoint))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert_same_bits(tensor, found[name], name)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({}, path)
    assert len(dormant.open_checkpoint(path)) == 0


def test_entries_say_where_the_bytes_lie(path: Path) -> None:
    data = path.read_bytes()
    expected = load_file(path)
    entries = dormant.open_checkpoint(path).entries
    assert entries.keys() == expected.keys()
    for name, entry in entries.items():
        assert entry.offset is not None
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=entry.offset)
        assert_same_bits(
            expected[name], raw[: entry.nbytes].view(entry.dtype).view(entry.shape), name
        )


@pytest.mark.parametrize("mmap", ["always", "never"])
def test_what_is_done_to_a_tensor_is_not_seen_by_the_next(
    path: Path, mmap: Literal["always", "never"]
) -> None:
    before = path.read_bytes()
    checkpoint = dormant.open_checkpoint(path)
    held = []
    for _ in range(3):
        tensor = checkpoint["F32"]
        _C.materialize([tensor], "exact", None, mmap=mmap)
        assert_same_bits(load_file(path)["F32"], tensor, "F32")
        held.append(tensor.fill_(7))
    recorded = checkpoint["F32"].fill_(9)
    assert dormant.is_lazy(recorded)
    dormant.materialize(again := checkpoint["F32"])
    assert_same_bits(load_file(path)["F32"], again, "F32")
    assert path.read_bytes() == before


def test_tensors_that_are_lazy_and_held_share_a_storage(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    first, second = checkpoint["I32"], checkpoint["I32"]
    assert _C.storage_id(first) == _C.storage_id(second)
    first.zero_()
    assert torch.equal(second, torch.zeros(3, 5, dtype=torch.int32))


# ---- the same verdict as the library

# What dormant refuses and the library accepts, by the words of the refusal: the list in
# csrc/checkpoint/safetensors.h.
STRICTER = (
    " twice in one object",
    "a tensor without a name",
    "unknown field",
    "expected '{'",
    "more than 64 dimensions",
    "overflows",  # of a shape with a zero in it
    "shape has the size ",  # likewise
    "its elements share bytes",
    "tensor '__metadata__': null before byte",
    ": an array before byte",  # the fields of a tensor without their names
)


def verdict(data: bytes, path: Path) -> dict[str, tuple[str, list[int]]] | str:
    """What dormant says of a file: dtype size and shape of each tensor, or the refusal."""
    path.write_bytes(data)
    try:
        entries, _ = _C.safetensors_entries(_C.File(str(path)))
    except ValueError as error:
        return str(error)
    return {name: (str(dtype), list(shape)) for name, dtype, shape, _, _ in entries}


def library_verdict(data: bytes) -> dict[str, tuple[str, list[int]]] | str:
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        return str(error)
    names = {name: str(dtype) for name, dtype in DTYPES.items()}
    names |= {"BOOL": "torch.bool", "F8_E8M0": "torch.float8_e8m0fnu"}
    return {
        name: (names.get(entry["dtype"], entry["dtype"]), entry["shape"]) for name, entry in entries
    }


@st.composite
def valid_files(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {}
    position = 0
    for name in draw(st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=4)):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        count = SIZES[dtype]
        for size in shape:
            count *= size
        header[name] = described(dtype, shape, position, position + count)
        position += count
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
    shuffled = draw(st.permutations(sorted(header)))
    return {name: header[name] for name in shuffled}, bytes(position)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**65),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([*sorted(SIZES), "F4", "F6_E2M3", "Q8"]),
    st.lists(st.integers(0, 2**64), max_size=3),
    st.just([0] * 70),
    st.just([]),
    st.just({}),
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    header, data = draw(valid_files())
    names = [name for name in header if name != "__metadata__"]
    for _ in range(draw(st.integers(0, 2))):
        change = draw(st.sampled_from(["name", "field", "offset", "data"]))
        if change == "name":
            header[draw(st.sampled_from(["", "x", "__metadata__"]))] = draw(VALUES)
        elif change == "field" and names:
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
            header[draw(st.sampled_from(names))] |= {field: draw(VALUES)}
        elif change == "offset" and names:
            offsets = header[draw(st.sampled_from(names))].get("data_offsets")
            if isinstance(offsets, list) and offsets:
                place = draw(st.integers(0, len(offsets) - 1))
                if isinstance(offsets[place], int):
                    offsets[place] += draw(st.sampled_from([-1, 1, 4, 2**62]))
        elif change == "data":
            data = data[:-1] if draw(st.booleans()) else data + b"x"
    text = json.dumps(header, ensure_ascii=draw(st.booleans()))
    with contextlib.suppress(UnicodeEncodeError):
        raw = text.encode()
        if draw(st.booleans()):
            place = draw(st.integers(0, len(raw)))
            raw = raw[:place] + draw(st.binary(max_size=3)) + raw[place + draw(st.integers(0, 2)) :]
        length = len(raw) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        return safetensors_bytes(raw, data, length=max(length, 0))
    return safetensors_bytes(text.encode("utf-8", "surrogatepass"), data)


def compare_verdicts(data: bytes, path: Path) -> None:
    ours, theirs = verdict(data, path), library_verdict(data)
    if isinstance(ours, dict):
        assert ours == theirs, f"dormant accepted {data!r}, the library says {theirs}"
    elif isinstance(theirs, dict):
        assert any(words in ours for words in STRICTER), (
            f"the library accepts {data!r}, dormant says {ours}"
        )


def run_with_examples(
    strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int
) -> None:
    """Hypothesis without its own fixtures: the folder is made once, not for each example."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Any) -> None:
        check(value)

    run()


def test_every_valid_file_is_accepted_with_the_same_tensors(tmp_path: Path) -> None:
    def check(value: tuple[dict[str, Any], bytes]) -> None:
        data = safetensors_bytes(*value)
        ours = verdict(data, tmp_path / "m")
        assert ours == library_verdict(data), data
        assert isinstance(ours, dict), f"{ours}: {data!r}"

    run_with_examples(valid_files(), check, 300)


def test_what_is_accepted_is_accepted_by_the_library_as_the_same(tmp_path: Path) -> None:
    run_with_examples(
        damaged_files(), lambda data: compare_verdicts(data, tmp_path / "m.safetensors"), 1500
    )
