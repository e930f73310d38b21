"""Safetensors files that are damaged or malicious: each is refused, and says where and why.

The format's own library is asked about each of them, too: what it accepts and dormant refuses is
marked, so the differences are stated here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

import dormant
from safetensors_bytes import described, safetensors_bytes, write_safetensors

GOOD = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@dataclass(frozen=True)
class Case:
    """A hostile file, and the texts that the refusal must have besides the path."""

    data: bytes
    says: tuple[str, ...]
    library_accepts: bool = False


def case(
    header: str | bytes | dict[str, Any],
    data: bytes,
    *says: str,
    length: int | None = None,
    library_accepts: bool = False,
) -> Case:
    return Case(safetensors_bytes(header, data, length=length), says, library_accepts)


def one(dtype: str, shape: str, offsets: str) -> str:
    return f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'


CASES = {
    "an empty file": Case(b"", ("0 bytes, expected at least 8",)),
    "half of the length": Case(b"\x02\0\0", ("3 bytes, expected at least 8",)),
    "a length beyond the file": case(
        "{}", b"", "3 bytes by the number at byte 0, expected at most 2", length=3
    ),
    "a length that overflows": case("{}", b"", str(2**64 - 1), "at most 2", length=2**64 - 1),
    "a header that ends early": case("{" + GOOD, b"0000", "is not JSON at byte"),
    "text behind the header": case("{" + GOOD + "}x", b"0000", "is not JSON at byte"),
    "a zero behind the header": case(
        b"{" + GOOD.encode() + b"}\0", b"0000", "null character at byte 62"
    ),
    "space before the header": case(
        " {" + GOOD + "}", b"0000", "at byte 8, expected '{'", library_accepts=True
    ),
    "a byte order mark": case(b"\xef\xbb\xbf{" + GOOD.encode() + b"}", b"0000", "expected '{'"),
    "bytes that are no text": case(b'{"\xff":{}}', b"", "is not UTF-8 at byte 10"),
    "half of a surrogate pair": case('{"\\ud800":{}}', b"", "is not JSON"),
    "a name twice": case(
        "{" + GOOD + "," + GOOD + "}", b"0000", "names 'a' twice", library_accepts=True
    ),
    "a field twice": case('{"a":{"dtype":"F32","dtype":"F32"}}', b"", "names 'dtype' twice"),
    "an unknown field": case(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"scale":2}}',
        b"0000",
        "tensor 'a': unknown field 'scale'",
        library_accepts=True,
    ),
    "a tensor without a name": case(
        '{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"0000",
        "a tensor without a name",
        library_accepts=True,
    ),
    "metadata that is no text": case(
        '{"__metadata__":{"n":1}}', b"", "__metadata__: 'n' is 1", "expected a string"
    ),
    "metadata that is null": case(
        '{"__metadata__":null}', b"", "null", "expected an object", library_accepts=True
    ),
    "metadata that nests": case('{"__metadata__":{"n":{"m":"x"}}}', b"", "'n' is an object"),
    "metadata with a name twice": case(
        '{"__metadata__":{"n":"a","n":"b"}}', b"", "names 'n' twice", library_accepts=True
    ),
    "deep nesting": case('{"a":' + "[" * 200_000, b"", "an array before byte"),
    "deep nesting of a shape": case(one("F32", "[[[[1]]]]", "[0,4]"), b"0000", "deeper than 3"),
    "a dtype that nobody knows": case(
        one("Q3", "[1]", "[0,4]"),
        b"0000",
        "dtype 'Q3' before byte",
        "expected one of U64, I64, F64",
    ),
    "a dtype without bytes of its own": case(
        one("F6_E2M3", "[4]", "[0,3]"), b"000", "'F6_E2M3'", "share bytes", library_accepts=True
    ),
    "half a byte": case(one("F4", "[2,3]", "[0,3]"), b"000", "multiple of 2", library_accepts=True),
    "a number of 4 bits": case(one("F4", "[]", "[0,1]"), b"0", "multiple of 2"),
    "packed numbers in too many bytes": case(one("F4", "[2]", "[0,2]"), b"00", "expected 1"),
    "a negative size": case(one("F32", "[-1]", "[0,4]"), b"0000", "'shape' has -1 before byte"),
    "a fractional size": case(one("F32", "[1.0]", "[0,4]"), b"0000", "'shape' has 1.0"),
    "NaN": case(one("F32", "[NaN]", "[0,4]"), b"0000", "is not JSON"),
    "a size above 64 bits": case(one("F32", f"[{2**64}]", "[0,4]"), b"0000", str(2**64)),
    "sizes that overflow": case(
        one("F32", f"[{2**31},{2**31},{2**31}]", "[0,4]"), b"0000", "overflows"
    ),
    "sizes that overflow beside a zero": case(
        one("F32", f"[0,{2**62},{2**62}]", "[0,0]"), b"", "overflows", library_accepts=True
    ),
    "thousands of dimensions": case(
        one("F32", str([1] * 5000), "[0,4]"),
        b"0000",
        "more than 64 dimensions",
        library_accepts=True,
    ),
    "fewer bytes than the dtype takes": case(
        one("F64", "[1]", "[0,4]"), b"0000", "are 4 bytes, expected 8 for shape [1] of Double"
    ),
    "offsets backwards": case(one("F32", "[1]", "[4,0]"), b"0000", "data_offsets 4 to 0"),
    "offsets beyond the file": case(
        one("F32", "[2]", "[0,8]"), b"0000", "data_offsets 0 to 8", "within the 4 bytes"
    ),
    "one offset": case(one("F32", "[1]", "[0]"), b"0000", "1 numbers", "expected 2"),
    "tensors that overlap": case(
        {"a": described("U8", [4], 0, 4), "b": described("U8", [4], 2, 6)},
        b"000000",
        "tensor 'b'",
        "where tensor 'a' ends, so they overlap",
    ),
    "a hole between tensors": case(
        {"a": described("U8", [1], 0, 1), "b": described("U8", [1], 3, 4)},
        b"0000",
        "tensor 'b'",
        "a hole of 2 bytes",
    ),
    "a hole at the start": case(one("U8", "[1]", "[2,3]"), b"000", "the header ends: a hole of 2"),
    "bytes behind the last tensor": case(
        one("U8", "[1]", "[0,1]"), b"000", "2 bytes belong to no tensor"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_says_why(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CASES[name].data)
    with pytest.raises(ValueError, match="open_checkpoint: ") as caught:
        dormant.open_checkpoint(path)
    message = str(caught.value)
    for text in (str(path), *CASES[name].says):
        assert text in message, f"{text!r} is not in {message}"
    assert len(message) < 2000


@pytest.mark.parametrize("name", CASES)
def test_the_library_agrees_but_where_it_is_stated(name: str) -> None:
    try:
        safetensors.deserialize(CASES[name].data)
        accepted = True
    except safetensors.SafetensorError:
        accepted = False
    assert accepted == CASES[name].library_accepts


def test_a_header_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(8 + 100_000_001)  # sparse: takes no space
    with pytest.raises(ValueError, match="expected at most 100000000, the format's limit"):
        dormant.open_checkpoint(path)


def test_names_cannot_forge_a_message(tmp_path: Path) -> None:
    name = "a\\n\\u001b[31mValueError: all is well" + "x" * 10_000
    path = write_safetensors(tmp_path / "m.safetensors", f'{{"{name}":1}}')
    with pytest.raises(ValueError, match="open_checkpoint: ") as caught:
        dormant.open_checkpoint(path)
    message = str(caught.value)
    assert "'a\\x0a\\x1b[31mValueError: all is well" in message
    assert message.isprintable()
    assert len(message) < 2000


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="a device, pipe or socket, expected a file"):
        dormant.open_checkpoint(pipe)
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=r"loop\.safetensors"):
        dormant.open_checkpoint(loop)


def test_the_system_refusing_is_an_oserror_with_its_number(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", "{}")
    path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        dormant.open_checkpoint(path)
    assert caught.value.errno == errno.ENOENT
    assert str(path) in str(caught.value)


def test_a_path_that_is_no_text_is_opened_and_named(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    write_safetensors(path, one("U8", "[1]", "[0,1]"), b"7")
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint.files == (path,)
    dormant.materialize(tensor := checkpoint["a"])
    assert tensor.tolist() == [ord("7")]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"/\\xff\.safetensors: the file has 0 bytes"):
        dormant.open_checkpoint(path)


# ---- files that change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_safetensors(
        tmp_path / "model.safetensors", {"a": described("U8", [4096], 0, 4096)}, bytes(4096)
    )


def refused_to_come_to_life(tensor: torch.Tensor, path: Path, *says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        dormant.materialize(tensor)
    for text in says:
        assert text in str(caught.value), f"{text!r} is not in {caught.value}"
    assert dormant.is_lazy(tensor)


def test_a_file_that_shrank_is_an_error_and_the_tensor_stays_lazy(path: Path) -> None:
    tensor = dormant.open_checkpoint(path)["a"]
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refused_to_come_to_life(tensor, path, f"the file has {size - 1} bytes, expected {size}")


def test_a_file_that_grew_is_an_error(path: Path) -> None:
    tensor = dormant.open_checkpoint(path)["a"]
    with path.open("ab") as file:
        file.write(b"x")
    refused_to_come_to_life(tensor, path, "expected")


def test_a_file_that_was_rewritten_in_place_is_an_error(path: Path) -> None:
    tensor = dormant.open_checkpoint(path)["a"]
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    refused_to_come_to_life(
        tensor, path, f"modified at {before.st_mtime_ns + 1} ns, expected {before.st_mtime_ns} ns"
    )


def test_a_file_that_was_replaced_is_still_read(path: Path) -> None:
    tensor = dormant.open_checkpoint(path)["a"]
    other = path.with_name("other")
    other.write_bytes(b"another")
    other.replace(path)
    dormant.materialize(tensor)
    assert torch.equal(tensor, torch.zeros(4096, dtype=torch.uint8))


def test_a_file_that_was_removed_is_still_read(path: Path) -> None:
    tensor = dormant.open_checkpoint(path)["a"]
    path.unlink()
    dormant.materialize(tensor)
    assert torch.equal(tensor, torch.zeros(4096, dtype=torch.uint8))


# ---- a system that reads in parts, is interrupted, or fails

FAULTS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static ssize_t fault(const char *name, int descriptor, void *out, size_t count, off_t offset) {
  static _Thread_local int calls;
  const char *kind = getenv("FAULT");
  if (strcmp(kind, "EINTR") == 0 && calls++ % 2 == 0) {
    errno = EINTR;
    return -1;
  }
  if (strcmp(kind, "EIO") == 0 && offset + (off_t)count > 2048) {
    errno = EIO;
    return -1;
  }
  if (strcmp(kind, "short") == 0 && count > 7) {
    count = 7;
  }
  ssize_t (*real)(int, void *, size_t, off_t) =
      (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, name);
  return real(descriptor, out, count, offset);
}
ssize_t pread(int descriptor, void *out, size_t count, off_t offset) {
  return fault("pread", descriptor, out, count, offset);
}
ssize_t pread64(int descriptor, void *out, size_t count, off_t offset) {
  return fault("pread64", descriptor, out, count, offset);
}
"""
READER = """
import sys, torch, dormant
tensor = dormant.open_checkpoint(sys.argv[1])["a"].to(torch.int32)
try:
    dormant.materialize(tensor)
except OSError as error:
    print("OSError", error.errno, dormant.is_lazy(tensor), error)
else:
    print(torch.equal(tensor, torch.arange(4096).remainder(251).int()))
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that stands before the system's positional reads."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.c").write_text(FAULTS)
    library = folder / "faults.so"
    command = ["cc", "-shared", "-fPIC", "-o", library, folder / "faults.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize("kind", ["short", "EINTR", "EIO"])
def test_reads_go_on_where_they_can_and_report_where_they_cannot(
    kind: str, faults: Path, tmp_path: Path
) -> None:
    data = bytes(i % 251 for i in range(4096))
    path = write_safetensors(
        tmp_path / "m.safetensors", {"a": described("U8", [4096], 0, 4096)}, data
    )
    environment = os.environ | {"LD_PRELOAD": str(faults), "FAULT": kind}
    ran = subprocess.run(
        [sys.executable, "-c", READER, path],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    if kind == "EIO":
        assert ran.stdout.startswith(f"OSError {errno.EIO} True "), ran.stdout
        assert f"of {path}: " in ran.stdout
        assert "bytes at offset" in ran.stdout
    else:
        assert ran.stdout == "True\n"
