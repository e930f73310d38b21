"""The examples of README.md run one after the other, and do what their comments say."""

from __future__ import annotations

import contextlib
import functools
import io
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

BUILD, SAVE, LOAD, QUANTIZE, SHARD = blocks(ROOT / "README.md")
RANK, WORLD = 1, 4
# In place of the examples' configuration, the default one, of 7 billion parameters.
small = functools.partial(
    transformers.LlamaConfig,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=1000,
)


def eager() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(small())


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
    """What each example leaves as `model`, and "printed"."""
    models: dict[str, Any] = {}
    names: dict[str, Any] = {"small": small}
    printed = io.StringIO()
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("readme"))
    try:
        with contextlib.redirect_stdout(printed):
            BUILD.run(names, {"config = LlamaConfig() ": "config = small() "})
            models["build"] = names["model"]
            for name, example in {"save": SAVE, "load": LOAD, "quantize": QUANTIZE}.items():
                example.run(names)
                models[name] = names["model"]
            models["report"] = names["report"]
            with one_rank_of_several():
                SHARD.run(names)
            models["shard"] = names["model"]
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
    models["printed"] = printed.getvalue()
    return models


def assert_same_state(expected: dict[str, Any], got: dict[str, Any]) -> None:
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)


def test_build_gives_the_eager_model(models: dict[str, Any]) -> None:
    assert "model.embed_tokens.weight" in models["printed"]
    assert_same_state(eager().to(torch.bfloat16).state_dict(), models["build"].state_dict())


def test_save_writes_the_eager_model_and_leaves_it_lazy(models: dict[str, Any]) -> None:
    assert dormant.is_lazy(models["save"])
    assert_same_state(eager().to(torch.bfloat16).state_dict(), models["saved"])


def test_load_gives_the_values_of_the_file(models: dict[str, Any]) -> None:
    assert models["report"].missing_keys == ()
    expected = eager().to(torch.bfloat16).to(torch.float16).state_dict()
    assert_same_state(expected, models["load"].state_dict())


def test_quantize_gives_the_bits_of_bitsandbytes(models: dict[str, Any]) -> None:
    assert_same_state(models["theirs"].state_dict(), models["quantize"].state_dict())


def test_shard_gives_this_rank_its_part_of_the_eager_model(models: dict[str, Any]) -> None:
    state = models["shard"].state_dict()
    for name, tensor in eager().state_dict().items():
        assert isinstance(state[name], DTensor)
        assert_same_bits(tensor.chunk(WORLD)[RANK], state[name].to_local(), name)
