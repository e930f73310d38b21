"""The examples of README.md run one after the other, and do what their comments say."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import dormant
from compare import assert_same_bits
from pages import ROOT, blocks

BUILD, SAVE, LOAD, QUANTIZE, LARGE, SHARD = blocks(ROOT / "README.md")
# The first block is the ways to install Dormant.
_, SUMMARY = blocks(ROOT / "README.md", "sh")
RANK, WORLD = 1, 4


def eager(models: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(models["config"])


@contextlib.contextmanager
def one_rank_of_several() -> Iterator[None]:
    """A process group without other processes: sharding and materializing need none."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each example leaves as `model`, and the configuration."""
    models: dict[str, Any] = {}
    names: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("readme"))
    try:
        examples = {
            "build": BUILD,
            "save": SAVE,
            "load": LOAD,
            "quantize": QUANTIZE,
            "large": LARGE,
        }
        for name, example in examples.items():
            example.run(names)
            models[name] = names["model"]
        SUMMARY.run_in_shell()
        with one_rank_of_several():
            SHARD.run(names)
        models |= {"shard": names["model"], "config": names["config"]}
        models["saved"] = dict(dormant.open_checkpoint("llama"))
        models["theirs"] = transformers.LlamaForCausalLM.from_pretrained(
            "llama",
            dtype=torch.bfloat16,
            quantization_config=transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
            ),
        )
    finally:
        os.chdir(before)
    return models


def assert_same_state(expected: dict[str, Any], got: dict[str, Any]) -> None:
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)


def test_build_gives_the_eager_model(models: dict[str, Any]) -> None:
    assert_same_state(eager(models).to(torch.bfloat16).state_dict(), models["build"].state_dict())


def test_save_writes_the_eager_model_and_leaves_it_lazy(models: dict[str, Any]) -> None:
    assert dormant.is_lazy(models["save"])
    assert_same_state(eager(models).to(torch.bfloat16).state_dict(), models["saved"])


def test_load_gives_the_values_of_the_file(models: dict[str, Any]) -> None:
    expected = eager(models).to(torch.bfloat16).to(torch.float16).state_dict()
    assert_same_state(expected, models["load"].state_dict())


def test_a_large_model_takes_no_memory(models: dict[str, Any]) -> None:
    parameters = list(models["large"].parameters())
    assert sum(parameter.numel() for parameter in parameters) > 6e9
    assert all(dormant.is_lazy(parameter) for parameter in parameters)


def test_quantize_gives_the_bits_of_bitsandbytes(models: dict[str, Any]) -> None:
    assert_same_state(models["theirs"].state_dict(), models["quantize"].state_dict())


def test_shard_gives_this_rank_its_part_of_the_eager_model(models: dict[str, Any]) -> None:
    state = models["shard"].state_dict()
    for name, tensor in eager(models).state_dict().items():
        assert isinstance(state[name], DTensor)
        assert_same_bits(tensor.chunk(WORLD)[RANK], state[name].to_local(), name)
