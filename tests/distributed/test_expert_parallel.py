"""Packed experts under transformers' expert parallelism: each rank packs and keeps its experts.

Compared with what bitsandbytes makes of the eager model in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from jobs.expert_parallel import FAMILIES, outputs_of, quiet, stacks
from jobs.models import SEED
from jobs.quantized import ORDERS
from launch import RunRanks
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import dormant
from compare import assert_same_bits
from pages import blocks

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
from peers import four_bit, int8
from stacked_models import pack_by_library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet()
    folder = tmp_path_factory.mktemp("experts")
    for name, configuration in FAMILIES.items():
        torch.manual_seed(9)
        AutoModelForCausalLM.from_config(configuration()).save_pretrained(folder / name)
    return folder


def eager(
    family: str,
    path: Path | None,
    *,
    block_size: int = 32,
    nested: bool = True,
    kind: str = "nf4",
    skip: Sequence[str] = ("lm_head",),
) -> Any:
    """Packed by bitsandbytes alone: stacks of experts, and every layer but `skip`."""
    torch.manual_seed(SEED)
    model: Any = (
        AutoModelForCausalLM.from_config(FAMILIES[family]())
        if path is None
        else AutoModelForCausalLM.from_pretrained(path)
    ).eval()
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    pack_by_library(model, names, compress_statistics=nested, blocksize=block_size)
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and not name.endswith(tuple(skip)):
            options = {"compress_statistics": nested, "block_size": block_size, "quant_type": kind}
            made = int8(module) if kind == "int8" else four_bit(module, **options)
            model.set_submodule(name, made)
    return model


def check(ranks: list[dict[str, Any]], expected: Any, experts: int = 0) -> None:
    """Compares ranks of which each `experts` in a row have all experts."""
    experts = experts or len(ranks)
    held = stacks(expected)
    outputs = outputs_of(expected)
    for rank, found in enumerate(ranks):
        assert list(found["elements"]) == list(held)
        for name, (module, attribute) in held.items():
            part = getattr(module, attribute).chunk(experts)[rank % experts]
            assert_same_bits(part.contiguous(), found["elements"][name], f"rank {rank}: {name}")
            packed = module.parametrizations[attribute].original.nbytes
            assert found["packed"][name] * len(ranks) == packed
        for name, tensor in outputs.items():
            # Some processors evaluate layers in bfloat16.
            close = {"rtol": 5e-2, "atol": 5e-3} if name == "evaluated" else {}
            torch.testing.assert_close(found["outputs"][name], tensor, **close)


def options(folder: Path, family: str, order: str, world: int, **changed: Any) -> dict[str, Any]:
    sizes = {"tp_size": world, "ep_size": world}
    defaults = {"block_size": 32, "nested": True, "sizes": sizes}
    return {"family": family, "path": str(folder / family), "order": order, **defaults, **changed}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world", [2, 4])
def test_every_order(run_ranks: RunRanks, folder: Path, order: str, world: int) -> None:
    ranks = run_ranks(world, "expert_parallel:run", **options(folder, "mixtral", order, world))
    check(ranks, eager("mixtral", folder / "mixtral" if "load" in order else None))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("order", ["quantize, divide, load", "quantize, divide, materialize"])
def test_families(run_ranks: RunRanks, folder: Path, family: str, order: str) -> None:
    """Biases of experts, transposed stacks, and norms between divided layers."""
    ranks = run_ranks(2, "expert_parallel:run", **options(folder, family, order, 2))
    check(ranks, eager(family, folder / family if "load" in order else None))


@pytest.mark.parametrize(("block_size", "nested"), [(64, False), (64, True), (32, False)])
def test_schemes(run_ranks: RunRanks, folder: Path, block_size: int, nested: bool) -> None:
    """Scales of experts that stay nested, and that do not because 256 of them cross the ranks."""
    changed = {"block_size": block_size, "nested": nested}
    given = options(folder, "mixtral", "quantize, divide, load", 2, **changed)
    ranks = run_ranks(2, "expert_parallel:run", **given)
    check(ranks, eager("mixtral", folder / "mixtral", **changed))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("order", ["quantize, divide, load", "quantize, divide, materialize"])
def test_tensor_parallelism(
    run_ranks: RunRanks, folder: Path, order: str, world: int, kind: str
) -> None:
    skip = ["lm_head", *(["o_proj", "down_proj"] if kind == "int8" else [])]
    given = options(folder, "llama", order, world, sizes={"tp_size": world}, kind=kind, skip=skip)
    ranks = run_ranks(world, "expert_parallel:run", **given)
    path = folder / "llama" if "load" in order else None
    check(ranks, eager("llama", path, kind=kind, skip=skip))


SHARDED = [
    (2, {"fsdp_size": 2, "ep_size": 2}),
    (4, {"fsdp_size": 4, "ep_size": 2}),
    (4, {"tp_size": 2, "fsdp_size": 2, "ep_size": 2}),
]


@pytest.mark.parametrize(("world", "sizes"), SHARDED, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_experts_that_fsdp_shards_again(
    run_ranks: RunRanks, folder: Path, order: str, world: int, sizes: dict[str, int]
) -> None:
    given = options(folder, "mixtral", order, world, sizes=sizes)
    ranks = run_ranks(world, "expert_parallel:run", **given)
    check(ranks, eager("mixtral", folder / "mixtral" if "load" in order else None), 2)


def test_a_rank_reads_its_experts(run_ranks: RunRanks, folder: Path) -> None:
    given = options(folder, "mixtral", "quantize, divide, load", 4)
    size = sum(file.stat().st_size for file in (folder / "mixtral").glob("*.safetensors"))
    for found in run_ranks(4, "expert_parallel:run", **given):
        assert found["read"] < 0.4 * size  # norms and routers are whole, columns have gaps


def test_the_state_is_that_of_the_whole_model(run_ranks: RunRanks, folder: Path) -> None:
    model = eager("mixtral", folder / "mixtral")
    expected = model.state_dict()
    given = options(folder, "mixtral", "quantize, divide, load", 2)
    for found in run_ranks(2, "expert_parallel:run", **given):
        assert set(found["state"]) <= set(expected)
        for name, tensor in found["state"].items():
            if "absmax" not in name and "quant_state" not in name:
                assert_same_bits(expected[name], tensor.reshape(expected[name].shape), name)
        for name in stacks(model):
            if f"{name}.nested_absmax" in found["state"]:
                for suffix in ("absmax", "nested_absmax", "quant_state.bitsandbytes__nf4"):
                    each = f"{name}.{suffix}"
                    assert_same_bits(expected[each], found["state"][each], each)


@pytest.mark.parametrize(
    ("world", "sizes"),
    [(2, {"tp_size": 2, "ep_size": 2}), (4, {"tp_size": 4, "ep_size": 4}), *SHARDED],
    ids=str,
)
def test_folders(run_ranks: RunRanks, tmp_path: Path, world: int, sizes: dict[str, int]) -> None:
    quiet()
    model = eager("mixtral", None)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    arguments = {"family": "mixtral", "folder": str(tmp_path), "sizes": sizes}
    for found in run_ranks(world, "expert_parallel:saved", **arguments):
        for name, (module, attribute) in stacks(model).items():
            assert_same_bits(getattr(module, attribute), found["elements"][name], name)


def test_the_program_of_the_page(run_ranks: RunRanks, folder: Path) -> None:
    (code,) = [
        block.code for block in blocks("distributed.md") if "maybe_distribute_model" in block.code
    ]
    path = folder / "mixtral"
    ranks = run_ranks(2, "expert_parallel:documented", code=code, path=str(path))
    check(ranks, eager("mixtral", path, block_size=64))


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}


@pytest.mark.parametrize(
    ("family", "scheme", "sizes"),
    [
        ("llama", NF4, {"tp_size": 2}),
        ("llama", NF4, {"tp_plan": "auto"}),
        ("llama", NF4, {"fsdp_size": 2}),
        ("tied", NF4, {"fsdp_size": 2}),
        ("tied", NF4, {"tp_size": 2}),
        ("tied", INT8, {"fsdp_size": 2}),
        ("llama", {**INT8, "llm_int8_skip_modules": ["o_proj", "down_proj"]}, {"tp_size": 2}),
        ("mixtral", NF4, {"tp_size": 2, "ep_size": 2}),
    ],
    ids=str,
)
def test_quantizers_of_the_library(
    run_ranks: RunRanks, folder: Path, family: str, scheme: dict[str, Any], sizes: dict[str, Any]
) -> None:
    """`from_pretrained` with both configurations gives the model of one process."""
    path = folder / family
    expected: Any = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=BitsAndBytesConfig(**scheme), device_map="cpu"
    )
    state, outputs = expected.state_dict(), outputs_of(expected)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    given = {"path": str(path), "scheme": scheme, "sizes": sizes}
    for found in run_ranks(2, "expert_parallel:pretrained", **given):
        assert found["lazy"]
        assert found["quantized"]
        assert found["read"] < 0.8 * size
        for name, tensor in found["state"].items():
            if "absmax" not in name and "quant_state" not in name:
                assert_same_bits(state[name], tensor.reshape(state[name].shape), name)
        for name, tensor in outputs.items():
            close = {"rtol": 5e-2, "atol": 5e-3} if name == "evaluated" else {}
            torch.testing.assert_close(found["outputs"][name], tensor, **close)


def test_a_checkpoint_that_is_quantized_already(run_ranks: RunRanks, tmp_path: Path) -> None:
    with dormant.lazy_init():
        model = AutoModelForCausalLM.from_config(FAMILIES["llama"]())
    dormant.quantize(model, "nf4")
    model.save_pretrained(tmp_path)
    for scheme in ({}, NF4):
        given = {"path": str(tmp_path), "scheme": scheme, "sizes": {"tp_size": 2}}
        for found in run_ranks(2, "expert_parallel:pretrained", **given):
            assert "bitsandbytes has quantized the checkpoint" in found["error"]


def test_refusals(run_ranks: RunRanks) -> None:
    expected = [
        "NotImplementedError: tensor parallelism: model.layers.0.mlp.experts.gate_up_proj, 4 x 48 "
        "x 128, was quantized by nf4, blocks of 64, double quantized; packed experts can be",
        "ValueError: expert parallelism, model.layers.0.mlp.experts.down_proj: a stack of experts, "
        "4 x 128 x 24 in nf4, blocks of 4096, double quantized, cannot be divided by experts "
        "among 2 ranks at the ends of blocks. That needs its number of experts a multiple of 8",
        "ValueError: tensor parallelism, model.layers.0.self_attn.o_proj.weight: the weight of a "
        "Linear4bit, 128 x 128 in nf4, blocks of 256, double quantized, cannot be divided by "
        "columns among 2 ranks at the ends of blocks. That needs its number of columns a "
        "multiple of 512",
        "ValueError: tensor parallelism, model.layers.0.self_attn.q_proj.weight: the quantized "
        "layer has been divided before",
    ]
    for messages in run_ranks(2, "expert_parallel:refusals"):
        for beginning, message in zip(expected, messages, strict=True):
            assert message.startswith(beginning), message
