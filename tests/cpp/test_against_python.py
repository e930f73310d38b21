"""The public C++ interface beside Python's: the same files opened, saved and quantized by both."""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import itertools
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes
import gguf
import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from encoded import (
    BITSANDBYTES,
    FP8,
    MXFP4,
    compressed,
    fp8_blocks,
    random_bytes,
    random_float8,
    random_scales,
    under,
    write,
)
from packed import awq, gptq, scales, words
from safetensors.torch import load_file, save_file

import dormant
from dormant.publication.locking import locked
from dormant.publication.staging import _place_of

pytestmark = pytest.mark.timeout(900)
Make = Callable[[Path], Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(-1).view(torch.uint8)

    return (
        one.dtype is other.dtype
        and one.shape == other.shape
        and torch.equal(as_bytes(one), as_bytes(other))
    )


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same_bits(found[name], expected[name])] == []


def read(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    """What Python reads, real."""
    checkpoint = dormant.open_checkpoint(path, **options)
    tensors = {name: checkpoint[name].clone() for name in checkpoint}
    for tensor in tensors.values():
        dormant.materialize(tensor)
    return tensors


# ---- every format


def plain() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        str(dtype): torch.randn(5, 7, generator=generator).to(dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    }
    return {
        **tensors,
        "integers": torch.arange(9).reshape(3, 3),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
        '\N{SNOWMAN}."quoted"\n': torch.ones(2),
    }


def safetensors(folder: Path) -> Path:
    save_file(plain(), folder / "m.safetensors", metadata={"made": "here"})
    return folder / "m.safetensors"


def shards(folder: Path) -> Path:
    return write(folder, plain(), files=3)


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.head = torch.nn.Linear(3, 4, bias=False)
        self.head.weight = self.linear.weight
        self.register_buffer("turned", torch.arange(12.0).reshape(3, 4).t())


def torch_file(folder: Path, *, zipped: bool = True) -> Path:
    state = {**plain(), "turned": torch.arange(6.0).reshape(2, 3).t(), "tied": torch.ones(3)}
    state["tied too"] = state["tied"]
    torch.save(state, folder / "m.pt", _use_new_zipfile_serialization=zipped)
    return folder / "m.pt"


def foreign(folder: Path) -> Path:
    value = {"state_dict": plain(), "args": argparse.Namespace(lr=1.0), "path": Path("x")}
    torch.save(value, folder / "m.ckpt")
    return folder / "m.ckpt"


def pickled_module(folder: Path) -> Path:
    torch.manual_seed(3)
    torch.save(Holder(), folder / "m.pt")
    return folder / "m.pt"


def distributed(folder: Path) -> Path:
    state = {"model": plain(), "optimizer": {"state": [{"m": torch.arange(5.0)}], "lr": 0.1}}
    dcp.save(state, checkpoint_id=folder)
    return folder


def saved_as_distributed(folder: Path) -> Path:
    with dormant.lazy_init():
        torch.manual_seed(3)
        model = Holder()
    dormant.save({"model": model}, folder, format="dcp")
    return folder


def distributed_safetensors(folder: Path) -> Path:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save({"a": torch.arange(12.0).reshape(4, 3), "b": torch.ones(3)}, storage_writer=writer)
    return folder


def gguf_file(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    random = numpy.random.default_rng(3)
    for kind in ("Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0"):
        each = gguf.GGMLQuantizationType[kind]
        elements, size = gguf.GGML_QUANT_SIZES[each]
        shape = (3, 512 // elements * size)
        writer.add_tensor(kind, random.integers(0, 256, shape, dtype=numpy.uint8), raw_dtype=each)
    writer.add_tensor("plain", random.standard_normal((4, 5)).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


def fp8(folder: Path) -> Path:
    tensors = under("a", fp8_blocks(200, 300)) | {"norm.weight": torch.ones(3)}
    return write(folder, tensors, FP8, files=2)


def fp8_rows(folder: Path) -> Path:
    tensors = {"weight": random_float8(12, 33), "weight_scale": random_scales(12, 1)}
    said = compressed("float-quantized", strategy="channel")
    return write(folder, under("a", tensors), said)


def mxfp4(folder: Path) -> Path:
    tensors = {
        "a.gate_up_proj_blocks": random_bytes(2, 16, 3, 16),
        "a.gate_up_proj_scales": random_scales(2, 16, 3, dtype=torch.uint8),
    }
    return write(folder, tensors, MXFP4)


def gptq_folder(folder: Path) -> Path:
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
    return write(folder, under("a", gptq(64, 96, act_order=True)), said, dtype="float16")


def awq_folder(folder: Path) -> Path:
    said = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return write(folder, under("a", awq(64, 96)), {**said, "zero_point": True}, dtype="float16")


def packed_integers(folder: Path) -> Path:
    tensors = {
        "weight_packed": words(24, 8),
        "weight_scale": scales(24, 2, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([24, 64]),
    }
    settings = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    return write(folder, under("a", tensors), compressed("pack-quantized", **settings))


def nf4(folder: Path) -> Path:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
    codes, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    saved = {f"a.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return write(folder, {"a.weight": codes, **saved}, BITSANDBYTES)


FORMATS: dict[str, Make] = {
    make.__name__: make
    for make in (
        *(safetensors, shards, torch_file, foreign, pickled_module, distributed),
        *(
            saved_as_distributed,
            distributed_safetensors,
            gguf_file,
            fp8,
            fp8_rows,
            mxfp4,
            gptq_folder,
            awq_folder,
        ),
        *(packed_integers, nf4),
    )
}
FORMATS["torch_file_older"] = lambda folder: torch_file(folder, zipped=False)


@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "raw"])
@pytest.mark.parametrize("format", FORMATS)
def test_both_open_the_same_tensors(
    format: str, raw: bool, public_api: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    path = FORMATS[format](folder)
    copied = tmp_path / "copied.safetensors"
    public_api("copy", path, copied, "untie", *(["raw"] if raw else []))
    expected = read(path, decode=not raw)
    assert expected
    assert_same(load_file(copied), expected)


def test_a_file_of_several_mappings_has_a_key_in_both(public_api: Run, tmp_path: Path) -> None:
    path, copied = tmp_path / "m.pt", tmp_path / "copied.safetensors"
    torch.save({"model": {"a": torch.ones(2)}, "ema": {"a": torch.zeros(2)}}, path)
    refused = public_api("copy", path, copied, status=1)
    with pytest.raises(ValueError, match="ema"):
        dormant.open_checkpoint(path)
    assert "ema" in refused.stderr
    public_api("copy", path, copied, "key", "ema")
    assert_same(load_file(copied), read(path, key="ema"))


def test_a_distributed_folder_has_keys_in_both(public_api: Run, tmp_path: Path) -> None:
    path, copied = distributed(tmp_path / "made"), tmp_path / "copied.safetensors"
    public_api("copy", path, copied, "key", "model")
    assert_same(load_file(copied), read(path, key="model"))
    public_api("copy", path, copied, "key", "optimizer.state")
    assert_same(load_file(copied), read(path, key="optimizer.state"))
    assert "KeyError" in public_api("copy", path, copied, "key", "none", status=1).stderr
    with pytest.raises(KeyError, match="none"):
        dormant.open_checkpoint(path, key="none")


def test_damage_is_refused_by_both(public_api: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(tmp_path).read_bytes()[:-1])
    refused = public_api("copy", path, tmp_path / "copied.safetensors", status=1)
    assert refused.stderr.startswith("ValueError: open_checkpoint: ")
    with pytest.raises(ValueError, match="open_checkpoint"):
        dormant.open_checkpoint(path)
    assert not (tmp_path / "copied.safetensors").exists()


# Names of files, an index of those behind it where it is one, and what both open; None: neither.
FOLDERS: dict[str, tuple[dict[str, list[str]], str | None]] = {
    "alone": ({"x.safetensors": []}, "x.safetensors"),
    "the usual name first": ({"model.safetensors": [], "x.safetensors": []}, "model.safetensors"),
    "safetensors before others": ({"x.safetensors": [], "y.bin": []}, "x.safetensors"),
    "two of a kind": ({"x.safetensors": [], "y.safetensors": []}, None),
    "an index": ({"m.safetensors.index.json": ["m-00001-of-00001.safetensors"]}, "m"),
    "a variant": ({"m.fp16.safetensors.index.json": ["m.fp16-00001-of-00001.safetensors"]}, "m"),
    "an index beside another file": (
        {"m.safetensors.index.json": ["m-00001-of-00001.safetensors"], "other.safetensors": []},
        "m",
    ),
    "an index and its variant": (
        {
            "m.safetensors.index.json": ["m-00001-of-00001.safetensors"],
            "m.safetensors.index.fp16.json": ["m-00001-of-00001.fp16.safetensors"],
        },
        "m",
    ),
    "only the other form of a variant": (
        {"m.safetensors.index.fp16.json": ["m-00001-of-00001.fp16.safetensors"]},
        "m",
    ),
    "a file and its variant": ({"x.safetensors": [], "x.fp16.safetensors": []}, "x.safetensors"),
    "two variants": ({"x.a.safetensors": [], "x.b.safetensors": []}, None),
    "two indices": (
        {
            "m.safetensors.index.json": ["m-00001-of-00001.safetensors"],
            "n.safetensors.index.json": ["n-00001-of-00001.safetensors"],
        },
        None,
    ),
    "an index of accelerate": ({"weight_map.index.json": ["x.pt"], "y.pt": []}, "m"),
    "one part of a set": ({"consolidated.00.pth": []}, "consolidated.00.pth"),
    "torch.save by another name": ({"x.pth": []}, "x.pth"),
    "nothing": ({"x.txt": []}, None),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_both_find_the_same_checkpoint_in_a_folder(
    case: str, public_api: Run, tmp_path: Path
) -> None:
    files, expected = FOLDERS[case]
    folder, copied = tmp_path / "made", tmp_path / "copied.safetensors"
    folder.mkdir()

    def write_one(name: str, key: str) -> None:
        if name.endswith(".safetensors"):
            save_file({key: torch.ones(1)}, folder / name)
        else:
            torch.save({key: torch.ones(1)}, folder / name)

    for name, shards in files.items():
        if not shards:
            write_one(name, name)
            continue
        for shard in shards:
            write_one(shard, "m")
        said = {"metadata": {}, "weight_map": dict.fromkeys(["m"], shards[0])}
        (folder / name).write_text(json.dumps(said))
    if expected is None:
        with pytest.raises(ValueError, match="open_checkpoint"):
            dormant.open_checkpoint(folder)
        assert "ValueError: " in public_api("copy", folder, copied, status=1).stderr
        return
    assert list(dormant.open_checkpoint(folder)) == [expected]
    public_api("copy", folder, copied)
    assert list(load_file(copied)) == [expected]


# ---- save


@pytest.mark.parametrize("limit", [None, 1000, 300, 1])
def test_both_save_the_same_bytes(limit: int | None, public_api: Run, tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    theirs, ours = tmp_path / "cpp", tmp_path / "python"
    tensors = dict(sorted(read(path).items(), key=lambda item: item[0].encode()))
    if limit is None:
        theirs, ours = theirs.with_suffix(".safetensors"), ours.with_suffix(".safetensors")
        public_api("copy", path, theirs)
        dormant.save(tensors, ours)
        assert theirs.read_bytes() == ours.read_bytes()
        return
    public_api("copy", path, theirs, "shard", limit)
    dormant.save(tensors, ours, max_shard_size=limit)
    names = sorted(file.name for file in ours.iterdir())
    assert sorted(file.name for file in theirs.iterdir()) == names
    for name in names:
        assert (theirs / name).read_bytes() == (ours / name).read_bytes(), name


def test_each_removes_what_the_other_left(public_api: Run, tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    target = tmp_path / "saved"
    target.mkdir()
    # As a killed save leaves it: the lock is there, and nobody holds it.
    place = _place_of(target)
    assert len(place) == 16
    for save in (
        lambda: public_api("copy", path, target / "m.safetensors"),
        lambda: dormant.save({"a": torch.ones(1)}, target / "n.safetensors"),
    ):
        left = target / f".dormant-{place}-0123456789abcdef.tmp"
        (left / "files" / "0.tmp").mkdir(parents=True)
        (left / "files" / "0.tmp" / "m.safetensors").write_bytes(b"half")
        (left / "lock").touch()
        save()
        assert not left.exists()
    assert sorted(file.name for file in target.iterdir()) == ["m.safetensors", "n.safetensors"]


def test_each_waits_for_the_other(public_api: Run, tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    target = tmp_path / "saved"
    target.mkdir()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with locked(target):
            saving = pool.submit(public_api, "copy", path, target / "m.safetensors")
            with pytest.raises(concurrent.futures.TimeoutError):
                saving.result(timeout=2)
            assert not (target / "m.safetensors").exists()
        saving.result(timeout=60)
    assert_same(load_file(target / "m.safetensors"), read(path))


# ---- quantize

SHAPES = [(64, 128), (7, 96), (5, 63), (3, 1), (300, 256), (2, 3, 64)]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block_size", [64, 256])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(
    kind: str, block_size: int, nested: bool, public_api: Run, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(7)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    weights = {
        f"{dtype}.{place}".replace("torch.", ""): torch.randn(shape, generator=generator).to(dtype)
        for dtype, (place, shape) in itertools.product(dtypes, enumerate(SHAPES))
    }
    save_file(weights, tmp_path / "m.safetensors")
    public_api(
        "quantize", tmp_path / "m.safetensors", tmp_path / "q.safetensors", kind, block_size,
        "true" if nested else "false",
    )  # fmt: skip
    expected = {}
    for name, weight in weights.items():
        codes, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=block_size, quant_type=kind, compress_statistics=nested
        )
        expected[name] = codes
        expected |= {f"{name}.{part}": t for part, t in state.as_dict(packed=True).items()}
    assert_same(load_file(tmp_path / "q.safetensors"), expected)


def test_eight_bits_are_those_of_bitsandbytes_and_of_python(
    public_api: Run, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(7)
    weights = {
        f"{place}.weight": torch.randn(shape, generator=generator)
        for place, shape in enumerate([(64, 128), (7, 96), (5, 63), (3, 1)])
    }
    save_file(weights, tmp_path / "m.safetensors")
    public_api("quantize", tmp_path / "m.safetensors", tmp_path / "q.safetensors", "int8", 0, "")
    with dormant.lazy_init():
        model = torch.nn.Sequential(
            *(torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights.values())
        )
    dormant.quantize(model, "int8", skip=())
    dormant.load(model, tmp_path / "m.safetensors")
    assert_same(load_file(tmp_path / "q.safetensors"), model.state_dict())


def test_python_and_bitsandbytes_read_what_cpp_quantized(public_api: Run, tmp_path: Path) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(7)).bfloat16()
    save_file({"0.weight": weight}, tmp_path / "m.safetensors")
    saved = tmp_path / "q.safetensors"
    public_api("quantize", tmp_path / "m.safetensors", saved, "nf4", 64, "true")
    with dormant.lazy_init():
        model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False, dtype=torch.bfloat16))
    dormant.quantize(model, "nf4", skip=())
    dormant.load(model, saved)
    eager = torch.nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    eager.weight.data = weight
    expected = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    expected._quantize("cpu")
    assert same_bits(model[0].weight.data, expected.data)
    assert_same({"0.weight": read(saved)["0.weight"]}, {
        "0.weight": bitsandbytes.functional.dequantize_4bit(expected.data, expected.quant_state)
    })  # fmt: skip


def test_what_cannot_be_quantized_is_refused(public_api: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for tensor, said in (
        (torch.arange(4), "expected float32, bfloat16 or float16"),
        (torch.zeros(0), "expected at least one element"),
    ):
        save_file({"a": tensor}, path)
        refused = public_api("quantize", path, tmp_path / "q", "nf4", 64, "true", status=1)
        assert refused.stderr.startswith("ValueError: ")
        assert said in refused.stderr
    save_file({"a": torch.ones(4)}, path)
    for scheme, block in (("nf4", 48), ("int8", 0)):
        refused = public_api("quantize", path, tmp_path / "q", scheme, block, "true", status=1)
        assert refused.stderr.startswith("ValueError: ")
    assert not (tmp_path / "q").exists()


def test_the_tables_are_those_of_bitsandbytes(public_api: Run, tmp_path: Path) -> None:
    save_file({"a": torch.randn(64, generator=torch.Generator())}, tmp_path / "m.safetensors")
    for kind in ("nf4", "fp4"):
        saved = tmp_path / f"{kind}.safetensors"
        public_api("quantize", tmp_path / "m.safetensors", saved, kind, 64, "true")
        found = load_file(saved)
        levels = bitsandbytes.functional.get_4bit_type(kind, device="cpu")
        assert same_bits(found["a.quant_map"], levels)
        dynamic = bitsandbytes.functional.create_dynamic_map()
        assert same_bits(found["a.nested_quant_map"], dynamic)
        state = json.load(io.BytesIO(bytes(found[f"a.quant_state.bitsandbytes__{kind}"].tolist())))
        assert state["quant_type"] == kind
