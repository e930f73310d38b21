"""`--parts` on names of transformers: the parts are those that the library makes of its models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from command import Cli
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from compare import assert_same_bits

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
MODELS = {
    "Llama": transformers.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "tied Qwen2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "Phi3": transformers.Phi3Config(**SMALL, pad_token_id=0),
    "Gemma3": transformers.Gemma3TextConfig(**SMALL, head_dim=8),
    "GPTNeoX": transformers.GPTNeoXConfig(**SMALL),
    "Mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=4),
    "Qwen3Moe": transformers.Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=16),
}


def model_of(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@contextmanager
def rank_of(rank: int, count: int) -> Iterator[None]:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def library_parts(
    config: transformers.PretrainedConfig, rank: int, count: int
) -> dict[str, torch.Tensor]:
    """What the library leaves to a rank."""
    model = model_of(config)
    with rank_of(rank, count):
        mesh = init_device_mesh("cpu", (count,))
        plan = model._expand_parallel_plan(model.tp_plan)
        # The library does not find the second name of a tied weight.
        known = {*dict(model.named_parameters()), *dict(model.named_modules())}
        apply_tensor_parallelism(
            model, mesh, {name: style for name, style in plan.items() if name in known}
        )
        model.tie_weights()
        return {
            name: value.to_local() if hasattr(value, "to_local") else value
            for name, value in model.state_dict().items()
        }


@pytest.mark.parametrize("kind", MODELS)
def test_parts_are_those_of_the_library_and_merge_back(cli: Cli, tmp_path: Path, kind: str) -> None:
    config = MODELS[kind]
    model = model_of(config)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    config.architectures = [type(model).__name__]
    config.save_pretrained(whole)
    torch.save(model.state_dict(), whole / "pytorch_model.bin")
    run = cli("convert", whole, parts, "--parts", "2")
    assert run.code == 0, run.err
    for rank in range(2):
        expected = library_parts(config, rank, 2)
        part = torch.load(parts / f"consolidated.{rank:02}.pth", weights_only=True)
        assert part.keys() == expected.keys()
        for name, tensor in part.items():
            assert_same_bits(expected[name], tensor, name)
    run = cli("convert", parts, tmp_path / "merged.pt", "--rules", "transformers")
    assert run.code == 0, run.err
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, merged[name], name)


def test_what_cannot_be_divided_is_one_line(cli: Cli, tmp_path: Path) -> None:
    def refused(*arguments: str | Path, says: str, state: dict[str, torch.Tensor]) -> None:
        torch.save(state, tmp_path / "in.pt")
        run = cli("convert", tmp_path / "in.pt", tmp_path / "out", *arguments)
        assert run.code == 2
        assert run.err.startswith("dormant convert: ")
        assert run.err.count("\n") == 1
        assert says in run.err
        assert not (tmp_path / "out").exists()

    llama = model_of(MODELS["Llama"]).state_dict()
    refused("--parts", "2", says="its config.json is needed: model.embed_tokens.weight is",
            state=llama)  # fmt: skip
    refused("--parts", "2", "--rules", "transformers", says="Pass --config", state=llama)
    for config, name in (
        (MODELS["Llama"], "llama"),
        (transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9), "gpt2"),
    ):
        config.architectures = [type(model_of(config)).__name__]
        config.save_pretrained(tmp_path / name)
    at = ("--config", tmp_path / "llama")
    refused("--parts", "3", *at, says="evenly among 3 ranks: model.", state=llama)
    refused("--parts", "2", *at, says="has no weights of these names", state={"x": torch.ones(1)})
    refused(
        "--parts", "2", "--config", tmp_path / "gpt2", says="no plan", state={"x": torch.ones(1)}
    )
