"""GPTQ, AWQ and packed integers of compressed-tensors: the bits of their libraries, anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from encoded import assert_same, compressed, under
from encoded import write as write_with_dtype
from packed import awq, awq_weight, codes, gptq, gptq_weight, scales, words
from safetensors.torch import load_file

import dormant
from child import in_child

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    quantization: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """A checkpoint whose config.json states no dtype: weights have that of their scales."""
    write_with_dtype(folder, tensors, quantization, **{"dtype": None, **options})


def only(folder: Path, name: str = "a.weight", decode: Any = True) -> torch.Tensor:
    """The tensor of a checkpoint, materialized."""
    tensor = dormant.open_checkpoint(folder, decode=decode)[name]
    assert dormant.is_lazy(tensor)
    dormant.materialize(tensor)
    return tensor


# ---- GPTQ


@pytest.mark.core
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_as_gptqmodel(tmp_path: Path, bits: int, act_order: bool, form: str) -> None:
    tensors = gptq(96, 256, bits, act_order=act_order)
    write(tmp_path, under("a", tensors), {**GPTQ, "bits": bits, "checkpoint_format": form})
    tensor = only(tmp_path)
    assert tensor.is_contiguous()
    assert_same(tensor, gptq_weight(tensors, bits, old=form == "gptq"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group", [-1, 16, 100, 128])
def test_gptq_groups(tmp_path: Path, group: int, dtype: torch.dtype) -> None:
    tensors = gptq(70, 250, 4, group, dtype=dtype)  # sizes that fill no words, a shorter group
    write(tmp_path, under("a", tensors), {**GPTQ, "group_size": group})
    assert_same(only(tmp_path), gptq_weight(tensors, 4, group))


def test_gptq_without_g_idx(tmp_path: Path) -> None:
    tensors = gptq(64, 256, g_idx=False)
    write(tmp_path, under("a", tensors), GPTQ)
    assert_same(only(tmp_path), gptq_weight(tensors, 4))


def test_gptq_zeros_that_overflow_carry_as_in_the_library(tmp_path: Path) -> None:
    tensors = gptq(64, 64)
    tensors["qzeros"].fill_(-1)  # all codes 15
    write(tmp_path, under("a", tensors), GPTQ)
    assert_same(only(tmp_path), gptq_weight(tensors, 4))


@pytest.mark.parametrize("name", ["quantize_config.json", "config.json"])
def test_gptq_said_where_libraries_say_it(tmp_path: Path, name: str) -> None:
    tensors = gptq(64, 128, act_order=True)
    write(tmp_path, under("a", tensors), config={"model_type": "llama"})
    said = {"bits": 4, "group_size": 32, "desc_act": True, "sym": False}
    if name == "config.json":
        said = {"quantization_config": {"quant_method": "gptq", **said}}
    (tmp_path / name).write_text(json.dumps(said))
    assert_same(only(tmp_path), gptq_weight(tensors, 4))


def test_gptq_decoded_to_the_dtype_asked_for(tmp_path: Path) -> None:
    tensors = gptq(64, 128)
    write(tmp_path, under("a", tensors), GPTQ)
    assert_same(only(tmp_path, decode=torch.bfloat16), gptq_weight(tensors, 4).bfloat16())
    write(tmp_path, under("a", tensors), GPTQ, dtype="bfloat16")
    assert_same(only(tmp_path), gptq_weight(tensors, 4).bfloat16())


def test_raw_parts_are_there(tmp_path: Path) -> None:
    tensors = under("a", gptq(64, 128))
    write(tmp_path, tensors, GPTQ)
    checkpoint = dormant.open_checkpoint(tmp_path, decode=False)
    assert set(checkpoint) == set(tensors)
    assert set(dormant.open_checkpoint(tmp_path)) == {"a.weight"}


@pytest.mark.parametrize("group", [4, -1, 2**31 - 1])
def test_a_group_that_is_not_there_is_named(tmp_path: Path, group: int) -> None:
    tensors = gptq(64, 128)
    tensors["g_idx"][77] = group
    write(tmp_path, under("model.a", tensors), GPTQ)
    tensor = dormant.open_checkpoint(tmp_path)["model.a.weight"]
    with pytest.raises(ValueError, match=rf"decode model.a: g_idx\[77\] is {group}; expected"):
        dormant.materialize(tensor)
    assert dormant.is_lazy(tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "(qweight|scales) has shape"),
        ({"bits": 5}, "states 5 bits for GPTQ"),
        ({"bits": 0}, "states 0 bits for GPTQ"),
        ({"bits": 0, "dynamic": {"a": {"bits": 4}}}, "states 0 bits for GPTQ"),
        ({"bits": "4"}, "states bits"),
        ({"group_size": 64}, "scales has shape"),
        ({"group_size": -7}, "groups of -7"),
        ({"group_size": 10**30}, "states group_size"),
    ],
)
def test_configurations_that_contradict_the_tensors(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for named, g_idx in (("with", True), ("without", False)):
        folder = tmp_path / named
        write(folder, under("a", gptq(64, 128, g_idx=g_idx)), {**GPTQ, **change})
        with pytest.raises(ValueError, match=message):
            dormant.open_checkpoint(folder)


@pytest.mark.parametrize("missing", ["qzeros", "scales"])
def test_layers_that_are_not_whole(tmp_path: Path, missing: str) -> None:
    tensors = gptq(64, 128)
    del tensors[missing]
    write(tmp_path, under("a", tensors), GPTQ)
    with pytest.raises(ValueError, match=rf"'a\.{missing}'.* is missing"):
        dormant.open_checkpoint(tmp_path)


def test_formats_that_are_not_known(tmp_path: Path) -> None:
    write(tmp_path, under("a", gptq(64, 128)), {**GPTQ, "checkpoint_format": "marlin"})
    with pytest.raises(NotImplementedError, match=r"marlin.*gptq and gptq_v2 can be decoded"):
        dormant.open_checkpoint(tmp_path)


# ---- AWQ


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group", [-1, 32, 128])
def test_awq_as_autoawq(tmp_path: Path, group: int, dtype: torch.dtype) -> None:
    tensors = awq(72, 256, group, dtype=dtype)
    write(tmp_path, under("a", tensors), {**AWQ, "group_size": group})
    assert_same(only(tmp_path), awq_weight(tensors, group))


def test_awq_of_another_version(tmp_path: Path) -> None:
    write(tmp_path, under("a", awq(64, 128)), {**AWQ, "version": "gemv"})
    with pytest.raises(NotImplementedError, match="version 'gemv'"):
        dormant.open_checkpoint(tmp_path)


# ---- compressed-tensors


def packed(
    rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, **weights: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A layer of random bits, and its quantization_config."""
    said = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, **weights}
    bits = said["num_bits"]
    grid = {
        "tensor": (1,),
        "channel": (rows, 1),
        "group": (rows, columns // (said["group_size"] or 1)),
    }[said["strategy"]]
    tensors = {
        "weight_packed": words(rows, -(-columns * bits // 32)),
        "weight_scale": scales(*grid, dtype=dtype),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not said.get("symmetric", True):
        if said["strategy"] == "tensor":
            tensors["weight_zero_point"] = torch.tensor([-3], dtype=torch.int8)
        else:
            tensors["weight_zero_point"] = words(-(-rows * bits // 32), grid[1], seed=5)
    return tensors, compressed("pack-quantized", **said)


def library(tensors: dict[str, torch.Tensor], quantization: dict[str, Any]) -> torch.Tensor:
    """The weight that compressed-tensors makes."""
    scheme = QuantizationScheme(
        targets=["Linear"], weights=quantization["config_groups"]["group_0"]["weights"]
    )
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    return compressor.decompress(tensors, scheme)["weight"]


@pytest.mark.core
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["group", "channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_integers_as_compressed_tensors(
    tmp_path: Path, bits: int, strategy: str, symmetric: bool
) -> None:
    group = 32 if strategy == "group" else None
    tensors, said = packed(
        75, 256, num_bits=bits, strategy=strategy, group_size=group, symmetric=symmetric
    )
    write(tmp_path, under("a", tensors), said)
    assert_same(only(tmp_path), library(tensors, said))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_packed_integers_of_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, said = packed(40, 101, dtype, strategy="channel", group_size=None)
    write(tmp_path, under("a", tensors), said)
    assert_same(only(tmp_path), library(tensors, said))


def test_columns_in_the_order_of_activations(tmp_path: Path) -> None:
    tensors, said = packed(40, 128, symmetric=False, actorder="group")
    groups = torch.randperm(128, generator=torch.Generator().manual_seed(3)) % 4
    tensors["weight_g_idx"] = groups.int()
    write(tmp_path, under("a", tensors), said)
    # As compressed-tensors did while it wrote weight_g_idx: a column has the scale of its group.
    zero = codes(tensors["weight_zero_point"].t(), 4, 40).t() - 8
    number = codes(tensors["weight_packed"], 4, 128) - 8
    difference = number.bfloat16() - zero.bfloat16()[:, groups]
    assert_same(only(tmp_path), difference * tensors["weight_scale"][:, groups])


def test_a_shape_that_contradicts_the_tensors(tmp_path: Path) -> None:
    tensors, said = packed(40, 128)
    tensors["weight_shape"][1] = 120
    write(tmp_path, under("a", tensors), said)
    tensor = dormant.open_checkpoint(tmp_path)["a.weight"]
    with pytest.raises(ValueError, match=r"decode a: weight_shape\[1\] is 120; expected 128"):
        dormant.materialize(tensor)
    tensors, said = packed(40, 128, strategy="channel", group_size=None)
    tensors["weight_shape"][1] = -1
    write(tmp_path, under("a", tensors), said)
    with pytest.raises(ValueError, match=r"weight has shape \[40, -1\]"):
        dormant.open_checkpoint(tmp_path)


# ---- wherever plain weights go


class Two(torch.nn.Module):
    """Two layers, of which `write_two` writes an encoded checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(256, 320, bias=False, dtype=torch.float16)
        self.second = torch.nn.Linear(320, 64, dtype=torch.float16)


def write_two(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """The state dict that the files stand for."""
    bias = {"second.bias": torch.arange(64, dtype=torch.float16)}
    if kind == "gptq":
        layers = [gptq(320, 256, act_order=True), gptq(64, 320, seed=7)]
        plain, said = [gptq_weight(layer, 4) for layer in layers], GPTQ
    elif kind == "awq":
        layers = [awq(320, 256), awq(64, 320, seed=7)]
        plain, said = [awq_weight(layer) for layer in layers], AWQ
    else:
        pairs = [packed(320, 256, torch.float16), packed(64, 320, torch.float16)]
        layers, said = [tensors for tensors, _ in pairs], pairs[0][1]
        plain = [library(*pair) for pair in pairs]
    both = {**under("first", layers[0]), **under("second", layers[1])}
    write(folder, {**both, **bias}, said, dtype="float16")
    return {"first.weight": plain[0], "second.weight": plain[1], **bias}


KINDS = pytest.mark.parametrize("kind", ["gptq", "awq", "compressed-tensors"])


@KINDS
@pytest.mark.parametrize("budget", [None, "1MiB"])
def test_load(kind: str, budget: str | None, tmp_path: Path) -> None:
    expected = write_two(kind, tmp_path)
    with dormant.lazy_init():
        model = Two()
    dormant.load(model, tmp_path, missing="error", memory_budget=budget)
    for name, tensor in model.state_dict().items():
        assert_same(tensor, expected[name])


@KINDS
def test_shards_are_parts_of_the_decoded_tensor(kind: str, tmp_path: Path) -> None:
    whole = write_two(kind, tmp_path)["first.weight"]
    checkpoint = dormant.open_checkpoint(tmp_path)
    rows = checkpoint["first.weight"].narrow(0, 101, 120).clone()
    columns = checkpoint["first.weight"].narrow(1, 61, 77).clone()
    some = checkpoint["first.weight"][::3, 5::7].clone()
    dormant.materialize([rows, columns, some])
    assert_same(rows, whole[101:221])
    assert_same(columns, whole[:, 61:138].contiguous())
    assert_same(some, whole[::3, 5::7].contiguous())


@KINDS
def test_one_pass_to_nf4_has_the_codes_of_the_decoded_model(kind: str, tmp_path: Path) -> None:
    plain = write_two(kind, tmp_path)
    with dormant.lazy_init():
        model, other = Two(), Two()
    dormant.quantize(model, "nf4", skip=[])
    dormant.load(model, tmp_path)
    dormant.quantize(other, "nf4", skip=[])
    dormant.load(other, plain)
    expected = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@KINDS
def test_the_tensors_never_exist_whole(kind: str, tmp_path: Path) -> None:
    big = {
        "gptq": lambda: (gptq(4096, 4096), GPTQ),
        "awq": lambda: (awq(4096, 4096), AWQ),
        "compressed-tensors": lambda: packed(4096, 4096),
    }[kind]()
    write(tmp_path / "big", under("a", big[0]), big[1])
    found = in_child(
        "import json, resource, torch, dormant\n",
        f"""
        torch.set_num_threads(2)
        checkpoint = dormant.open_checkpoint({str(tmp_path / "big")!r})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        dormant.save(
            {{"a.weight": checkpoint["a.weight"]}}, {str(tmp_path / "out.safetensors")!r},
            memory_budget="8MiB",
        )
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({{"grown": (after - before) * 1024}}))
        """,
    )
    assert found["grown"] < 20 << 20  # the tensor has 32 MiB, its codes 8, mapped or read
    out = load_file(tmp_path / "out.safetensors")["a.weight"]
    weight = {"gptq": lambda t: gptq_weight(t, 4), "awq": awq_weight}.get(
        kind, lambda t: library(t, big[1])
    )
    assert_same(out, weight(big[0]))


@KINDS
@pytest.mark.threads
def test_two_threads_materialize_one_and_the_same(kind: str, tmp_path: Path) -> None:
    expected = write_two(kind, tmp_path)["first.weight"]
    checkpoint = dormant.open_checkpoint(tmp_path)
    shared = checkpoint["first.weight"]
    own: list[torch.Tensor] = []
    ready = threading.Barrier(2)

    def work() -> None:
        ready.wait()
        mine = checkpoint["first.weight"].clone()
        dormant.materialize(shared)
        dormant.materialize(mine)
        own.append(mine)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tensor in (shared, *own):
        assert_same(tensor, expected)
