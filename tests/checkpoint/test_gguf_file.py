"""GGUF files as checkpoints: the values of gguf's own `dequantize`, from any range."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch

import dormant
from gguf_bytes import array, gguf_bytes, pair, text, u32, u64

KINDS = gguf.GGMLQuantizationType
PACKED = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
]  # fmt: skip
STORED = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


def write(path: Path, tensors: dict[str, tuple[numpy.ndarray, str]], **values: Any) -> Path:
    """A file of tensors, each as bytes of a type."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        writer.add_uint16(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: str, *shape: int, seed: int = 0) -> numpy.ndarray:
    """Any bytes: scales that are NaN, infinite, subnormal, of either sign."""
    elements, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    width = shape[-1] // elements * size
    random = numpy.random.default_rng(seed)
    return random.integers(0, 256, (*shape[:-1], width), dtype=numpy.uint8)


def reference(data: numpy.ndarray, kind: str) -> torch.Tensor:
    with numpy.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(data, KINDS[kind]))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.core
@pytest.mark.parametrize("kind", PACKED)
def test_values_are_those_of_gguf(kind: str, tmp_path: Path) -> None:
    data = random_blocks(kind, 3, 130, 512)
    checkpoint = dormant.open_checkpoint(write(tmp_path / "m.gguf", {"w": (data, kind)}))
    entry = checkpoint.entries["w"]
    assert (entry.shape, entry.dtype) == ((3, 130, 512), torch.float32)
    assert entry.encoding == f"GGUF {kind}"
    found = checkpoint["w"]
    assert dormant.is_lazy(found)
    dormant.materialize(found)
    assert same_bits(found, reference(data, kind))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "MXFP4"])
@pytest.mark.parametrize("budget", [None, 1 << 18])
def test_views_and_casts_are_decoded_alone(kind: str, budget: int | None, tmp_path: Path) -> None:
    data = random_blocks(kind, 64, 1024)
    path = write(tmp_path / "m.gguf", {"w": (data, kind)})
    whole = reference(data, kind)
    views = {
        "rows": lambda w: w[3:17].clone(),
        "columns": lambda w: w[:, 5:777].clone(),
        "steps": lambda w: w[::3, 1::7].clone(),
        "transposed": lambda w: w.t().contiguous(),
        "bfloat16": lambda w: w.to(torch.bfloat16),
        "half of a row": lambda w: w[10, 13:600].to(torch.float16),
    }
    for name, view in views.items():
        found = view(dormant.open_checkpoint(path)["w"])
        assert dormant.is_lazy(found), name
        dormant.materialize(found, memory_budget=budget)
        expected = view(whole)
        assert torch.equal(found.isnan(), expected.isnan()), name  # which is not equal to itself
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()), name


def test_other_types_are_shown_as_they_are(tmp_path: Path) -> None:
    tensors = {}
    for kind, dtype in STORED.items():
        values = torch.arange(-6, 6).to(dtype).view(3, 4)
        tensors[kind] = (values.view(torch.uint8).numpy(), kind)
    checkpoint = dormant.open_checkpoint(write(tmp_path / "m.gguf", tensors))
    for kind, dtype in STORED.items():
        assert checkpoint.entries[kind].encoding == ""
        assert torch.equal(checkpoint[kind], torch.arange(-6, 6).to(dtype).view(3, 4)), kind


def test_blocks_are_shown_where_nothing_is_decoded(tmp_path: Path) -> None:
    data = random_blocks("Q5_K", 2, 3, 256)
    path = write(tmp_path / "m.gguf", {"w": (data, "Q5_K")})
    checkpoint = dormant.open_checkpoint(path, decode=False)
    assert checkpoint.entries["w"].encoding == "GGUF Q5_K"
    assert torch.equal(checkpoint["w"], torch.from_numpy(data))
    half = dormant.open_checkpoint(path, decode=torch.bfloat16)
    assert half.entries["w"].dtype == half["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_has_every_value(version: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    pairs = [
        pair("general.architecture", 8, text("llama")),
        pair("u8", 0, b"\xff"),
        pair("i8", 1, b"\xff"),
        pair("i32", 5, u32(2**32 - 3)),
        pair("u64", 10, u64(2**64 - 1)),
        pair("yes", 7, b"\1"),
        pair("f32", 6, numpy.float32(0.1).tobytes()),
        pair("f64", 12, numpy.float64(0.1).tobytes()),
        array("words", 8, 3, text("a") + text("ü") + text("")),
        array("numbers", 3, 2, numpy.array([-1, 2], "<i2").tobytes()),
        array("flags", 7, 2, b"\0\1"),
        array("none", 8, 0, b""),
    ]
    path.write_bytes(gguf_bytes(pairs, version=version))
    metadata = dormant.open_checkpoint(path).metadata
    assert metadata["general.architecture"] == "llama"
    assert (metadata["u8"], metadata["i8"], metadata["i32"]) == (255, -1, -3)
    assert (metadata["u64"], metadata["yes"]) == (2**64 - 1, True)
    assert (metadata["f32"], metadata["f64"]) == (float(numpy.float32(0.1)), 0.1)
    assert metadata["words"] == ["a", "ü", ""]
    assert metadata["words"] != ["a"]
    assert metadata["words"][1] == "ü"
    assert list(metadata["numbers"]) == [-1, 2]
    assert metadata["flags"] == [False, True]
    assert len(metadata["none"]) == 0
    assert repr(metadata["numbers"]) == "[-1, 2]"


def split(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    paths = []
    for number in range(count):
        path = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
        values = {"split.no": number, "split.count": count, **changes}
        data = random_blocks("Q8_0", 4, 64, seed=number)
        write(path, {f"w{number}": (data, "Q8_0")}, **values)
        paths.append(path)
    return paths


def test_a_split_file_is_one_checkpoint(tmp_path: Path) -> None:
    paths = split(tmp_path)
    for asked in (paths[0], paths[2], tmp_path, paths):
        checkpoint = dormant.open_checkpoint(asked)
        assert list(checkpoint) == ["w0", "w1", "w2"]
        assert checkpoint.files == tuple(paths)
    found = checkpoint["w2"]
    dormant.materialize(found)
    assert same_bits(found, reference(random_blocks("Q8_0", 4, 64, seed=2), "Q8_0"))


def test_a_split_file_that_lacks_parts_or_mixes_them_is_refused(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"not in the folder: \['m-00002-of-00003.gguf'\]"):
        dormant.open_checkpoint(paths[0])
    (tmp_path / "away").rename(paths[1])
    paths[2].write_bytes(paths[0].read_bytes())
    with pytest.raises(ValueError, match=r"split.no and split.count are 0 and 3, expected 2 and 3"):
        dormant.open_checkpoint(paths[0])
    with pytest.raises(ValueError, match="part 9 of 3 according to its name"):
        paths[0].rename(tmp_path / "m-00009-of-00003.gguf")
        dormant.open_checkpoint(tmp_path / "m-00009-of-00003.gguf")


def test_a_gguf_file_of_another_name_is_recognized(tmp_path: Path) -> None:
    data = random_blocks("Q8_0", 1, 32)
    write(tmp_path / "m.gguf", {"w": (data, "Q8_0")})
    (tmp_path / "m.gguf").rename(tmp_path / "m.bin")
    assert list(dormant.open_checkpoint(tmp_path / "m.bin")) == ["w"]
    (tmp_path / "m.bin").rename(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="It is a GGUF file"):
        dormant.open_checkpoint(tmp_path / "m.safetensors")


def test_verify_reads_every_byte(tmp_path: Path) -> None:
    data = random_blocks("Q8_0", 4, 64)
    path = write(tmp_path / "m.gguf", {"w": (data, "Q8_0")})
    result = dormant.open_checkpoint(path).verify()
    assert result.tensors == 1
    assert result.unchecked_nbytes == path.stat().st_size


@pytest.mark.threads
def test_two_threads_decode_one_tensor(tmp_path: Path) -> None:
    data = random_blocks("Q4_K", 256, 1024)
    checkpoint = dormant.open_checkpoint(write(tmp_path / "m.gguf", {"w": (data, "Q4_K")}))
    expected = reference(data, "Q4_K")
    shared = checkpoint["w"]
    results: list[torch.Tensor] = []

    def decode() -> None:
        own = checkpoint["w"]
        dormant.materialize([own, shared])
        results.extend([own, shared])

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(same_bits(result, expected) for result in results)
