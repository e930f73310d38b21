"""GGUF files that are damaged or malicious: each is refused, and says where and why.

The package gguf is asked about each of them, too: what it accepts and dormant refuses is marked, so
the differences are stated here and nowhere else.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import dormant
from gguf_bytes import array, gguf_bytes, pair, tensor, text, u32, u64

F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12
MOST = 2**64 - 1
GOOD = tensor("a", [4], F32, 0)


@dataclass(frozen=True)
class Case:
    """A hostile file, and the texts that the refusal must have besides the path."""

    data: bytes
    says: tuple[str, ...]
    error: type[Exception] = ValueError
    library_accepts: bool = False


def case(data: bytes, *says: str, **values: Any) -> Case:
    return Case(data, says, **values)


def one(description: bytes, data: bytes = bytes(16), *says: str, **values: Any) -> Case:
    return Case(gguf_bytes(tensors=[description], data=data), says, **values)


def key(bytes_of_it: bytes, *says: str, **values: Any) -> Case:
    return Case(gguf_bytes([bytes_of_it]), says, **values)


CASES = {
    "the magic alone": case(b"GGUF", "the version at byte 4", "takes 4 bytes, expected at most 0"),
    "half a count": case(b"GGUF" + u32(3) + b"\0\0\0", "the number of tensors at byte 8"),
    "version 1": case(
        gguf_bytes(version=1), "is 1, expected 2 or 3", "Next:", error=NotImplementedError
    ),
    "version 9": case(gguf_bytes(version=9), "is 9, expected 2 or 3"),
    "version 0": case(gguf_bytes(version=0), "is 0, expected 2 or 3"),
    "a big-endian file": case(
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian", "Next:", error=NotImplementedError,
        library_accepts=True,
    ),
    "2**64 - 1 tensors": case(gguf_bytes(counts=(MOST, 0)), "number of tensors", str(MOST)),
    "2**64 - 1 keys": case(gguf_bytes(counts=(0, MOST)), "number of keys", str(MOST)),
    "2**40 tensors": case(gguf_bytes(counts=(2**40, 0)), "room in the file"),
    "one tensor more than there is room for": case(gguf_bytes(counts=(1, 0)), "expected at most 0"),
    "a tensor less than there are": case(
        gguf_bytes([pair("k", 4, u32(1))], [GOOD], bytes(16), counts=(2, 1)),
        "is empty", "the name of a tensor",
    ),
    "a key beyond the file": key(u64(2**40) + b"k", "a key at byte 24", "expected at most"),
    "a key of 2**64 - 1 bytes": key(u64(MOST) + b"k" * 40, str(MOST)),
    "a key of 70000 bytes": key(pair("k" * 70000, 4, u32(0)), "65535", library_accepts=True),
    "a key without text": key(pair("", 4, u32(0)), "is empty", library_accepts=True),
    "a key that is no text": key(pair(b"\xff\xfe", 4, u32(0)), "not UTF-8 at its byte 0"),
    "a key twice": case(
        gguf_bytes([pair("k", 4, u32(0)), pair("k", 4, u32(1))]), "'k'", "given twice"
    ),
    "a value of an unknown type": key(pair("k", 13, u32(0)), "'k'", "type 13"),
    "a value of type 2**32 - 1": key(pair("k", 2**32 - 1, u32(0)), str(2**32 - 1)),
    "a boolean that is 2": key(pair("k", 7, b"\2"), "is 2, expected 0 or 1", library_accepts=True),
    "a string beyond the file": key(pair("k", 8, u64(999) + b"x"), "'k'", "has 999 bytes"),
    "a string of 2**64 - 1 bytes": key(pair("k", 8, u64(MOST) + b"x"), str(MOST)),
    "an array of arrays": key(
        array("k", 9, 1, u32(4) + u64(1) + u32(7)), "array of arrays", library_accepts=True
    ),
    "arrays nested a thousand deep": key(
        pair("k", 9, (u32(9) + u64(1)) * 1000 + u32(4) + u64(0)), "array of arrays"
    ),
    "an array of an unknown type": key(array("k", 99, 1, u32(0)), "type 99"),
    "an array beyond the file": key(array("k", 4, 1000, u32(0)), "an array of 1000 elements"),
    "an array of 2**64 - 1 elements": key(array("k", 0, MOST, b"x"), str(MOST)),
    "an array whose bytes overflow": key(array("k", 10, 2**61, b"x" * 8), str(2**61)),
    "an array of 2**60 strings": key(array("k", 8, 2**60, text("x")), str(2**60)),
    "a string in an array beyond the file": key(
        array("k", 8, 2, text("x") + u64(2**33)), f"has {2**33} bytes"
    ),
    "a boolean in an array that is 3": key(
        array("k", 7, 2, b"\1\3"), "is 3, expected 0 or 1", library_accepts=True
    ),
    "alignment 0": key(pair("general.alignment", 4, u32(0)), "general.alignment is 0"),
    "alignment 24": key(pair("general.alignment", 4, u32(24)), "general.alignment is 24"),
    "alignment 2**62": key(pair("general.alignment", 10, u64(2**62)), str(2**62)),
    "alignment in words": key(pair("general.alignment", 8, text("32")), "not an unsigned number"),
    "a tensor that is cut off": case(
        b"GGUF" + u32(3) + u64(1) + u64(0) + text("abcdefghi") + u32(1) + u64(4),
        "tensor 'abcdefghi'", "takes 4 bytes",
    ),
    "a tensor without a name": one(tensor("", [4], F32, 0), bytes(16), "is empty",
                                   library_accepts=True),
    "a name that is no text": one(tensor(b"\xc0\x80", [4], F32, 0), bytes(16), "not UTF-8"),
    "a name twice": case(
        gguf_bytes(tensors=[GOOD, tensor("a", [4], F32, 32)], data=bytes(64)), "'a'", "given twice"
    ),
    "5 dimensions": one(
        tensor("a", [1] * 5, F32, 0), bytes(16), "has 5 dimensions, expected at most 4",
        library_accepts=True,
    ),
    "2**32 - 1 dimensions": one(
        tensor("a", [1], F32, 0, dimensions=2**32 - 1), bytes(16), str(2**32 - 1)
    ),
    "a size of 2**63": one(tensor("a", [2**63], F32, 0), bytes(16), str(2**63)),
    "sizes that overflow": one(tensor("a", [2**32, 2**32], F32, 0), bytes(16), "overflows"),
    "sizes that overflow beside a zero": one(
        tensor("a", [0, 2**62, 2**62], F32, 0), b"", "overflows"
    ),
    "an unknown type": one(tensor("a", [4], 200, 0), bytes(16), "'a'", "has type 200"),
    "a type that ggml removed": one(tensor("a", [32], 5, 0), bytes(32), "has type 5", "removed"),
    "half a block": one(tensor("a", [16], Q8_0, 0), bytes(64), "whole blocks of Q8_0, 32"),
    "a row of half a super-block": one(
        tensor("a", [128, 2], Q4_K, 0), bytes(144), "shape [2, 128]", "whole blocks of Q4_K, 256"
    ),
    "a scalar in blocks": one(tensor("a", [], Q4_0, 0), bytes(18), "whole blocks of Q4_0"),
    "an offset between alignments": one(
        tensor("a", [1], F32, 8), bytes(64), "start at 8 of the data", "multiple of the alignment",
        library_accepts=True,
    ),
    "an offset beyond the file": one(tensor("a", [4], F32, 2**40), bytes(16), f"at {2**40}"),
    "an offset of 2**64 - 32": one(tensor("a", [8], F32, 2**64 - 32), bytes(64), str(2**64 - 32)),
    "a byte less than the tensor has": one(GOOD, bytes(15), "expected a range within its 15 bytes"),
    "no data": one(GOOD, b"", "expected a range within its 0 bytes"),
    "tensors that overlap": case(
        gguf_bytes(tensors=[tensor("a", [9], F32, 0), tensor("b", [4], F32, 32)], data=bytes(64)),
        "tensor 'b'", "where tensor 'a' ends, so they overlap", library_accepts=True,
    ),
    "tensors of the same bytes": case(
        gguf_bytes(tensors=[GOOD, tensor("b", [4], F32, 0)], data=bytes(16)), "they overlap",
        library_accepts=True,
    ),
    "a tensor in the middle of another": case(
        gguf_bytes(tensors=[tensor("a", [32], F32, 0), tensor("b", [1], F32, 64)], data=bytes(128)),
        "they overlap", library_accepts=True,
    ),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return written


@pytest.mark.core
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused(name: str, write: Callable[[bytes], Path]) -> None:
    case = CASES[name]
    path = write(case.data)
    with pytest.raises(case.error) as caught:
        dormant.open_checkpoint(path)
    message = str(caught.value)
    for part in (str(path), *case.says):
        assert part in message
    assert len(message) < 2000


@pytest.mark.parametrize("name", CASES)
def test_the_library_differs_where_it_is_said(name: str, write: Callable[[bytes], Path]) -> None:
    case = CASES[name]
    path = write(case.data)
    if any(word in name for word in ("2**", "70000", "beyond")):
        pytest.skip("the library would take as much memory or time as the file asks for")
    try:
        gguf.GGUFReader(path)
        accepted = True
    except Exception:
        accepted = False
    assert accepted == case.library_accepts


def test_more_than_forty_files() -> None:
    assert len(CASES) >= 40


def test_every_beginning_of_a_file_is_refused(write: Callable[[bytes], Path]) -> None:
    whole = gguf_bytes(
        [pair("general.architecture", 8, text("llama")), array("words", 8, 2, text("a") * 2)],
        [tensor("a", [32, 2], Q8_0, 0), tensor("b", [3], F16, 96)],
        bytes(102),
    )
    assert len(dormant.open_checkpoint(write(whole))) == 2
    for size in range(4, len(whole)):
        with pytest.raises(ValueError, match=r"model\.gguf"):
            dormant.open_checkpoint(write(whole[:size]))


def test_a_claim_costs_no_memory(write: Callable[[bytes], Path]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for claim in (2**20, 2**31, 2**50):
        for data in (gguf_bytes(counts=(claim, 0)), gguf_bytes([array("k", 8, claim, b"")])):
            with pytest.raises(ValueError, match=r"room in the file|at most"):
                dormant.open_checkpoint(write(data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_text_that_is_no_utf8_survives(write: Callable[[bytes], Path]) -> None:
    path = write(gguf_bytes([array("words", 8, 2, text(b"a\xff") + text("b"))]))
    words = dormant.open_checkpoint(path).metadata["words"]
    assert [word.encode(errors="surrogateescape") for word in words] == [b"a\xff", b"b"]


def test_a_file_that_changed_is_noticed(write: Callable[[bytes], Path]) -> None:
    path = write(gguf_bytes(tensors=[tensor("a", [32], Q8_0, 0)], data=bytes(34)))
    checkpoint = dormant.open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-2])
    found = checkpoint["a"]
    with pytest.raises(ValueError, match="changed"):
        dormant.materialize(found)
    assert dormant.is_lazy(found)


def test_a_block_of_an_undecoded_type_is_named(write: Callable[[bytes], Path]) -> None:
    path = write(gguf_bytes(tensors=[tensor("a", [256], 16, 0), tensor("b", [2], F32, 96)],
                            data=bytes(104)))  # fmt: skip
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint.entries["a"].shape == (256,)
    found = checkpoint["a"]
    with pytest.raises(NotImplementedError, match=r"IQ2_XXS.*llama-quantize"):
        dormant.materialize(found)
    assert dormant.is_lazy(found)
    assert torch.equal(checkpoint["b"], torch.zeros(2))
    assert dormant.open_checkpoint(path, decode=False)["a"].shape == (66,)
