"""Experts in 4 bits compute with those that are wanted only, and give what all of them would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from stacked_models import BUILDS, SIZES, built, mixtral, pack_by_library, qwen3_moe, stacks
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import dormant
from compare import assert_same_bits
from dormant.quantization import few_experts

LINEAR = [r".*(self_attn|lm_head|gate|router)"]
KNOWN = ("mixtral", "qwen3_moe", "gpt_oss")


def pair(build: Callable[[], Any], implementation: str, **options: Any) -> tuple[Any, Any]:
    """A model packed by Dormant, and the same by the library's own way."""
    model, eager = built(build, lazily=True), built(build, lazily=False)
    for each in (model, eager):
        each.set_experts_implementation(implementation)
    dormant.quantize(model, dormant.FourBit(**options), skip=LINEAR)
    dormant.materialize(model)
    pack_by_library(
        eager,
        stacks(eager),
        compress_statistics=options.get("nested", True),
        quant_type=options.get("kind", "nf4"),
        blocksize=options.get("block_size", 64),
    )
    return model, eager


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many experts were unpacked at a time, alone."""
    counts: list[int] = []
    original = few_experts._unpacked

    def counted(packed: Any, state: Any, experts: torch.Tensor) -> torch.Tensor:
        counts.append(len(experts))
        return original(packed, state, experts)

    monkeypatch.setattr(few_experts, "_unpacked", counted)
    monkeypatch.setattr(few_experts, "_ELEMENTS_OF_CHOICE", 0)  # models of tests are tiny
    return counts


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_values_are_those_of_all_experts(
    name: str, implementation: str, nested: bool, unpacked: list[int]
) -> None:
    options = {"kind": "nf4" if nested else "fp4", "block_size": 64 if nested else 32}
    model, eager = pair(BUILDS[name], implementation, nested=nested, **options)
    assert eager.config._experts_implementation == implementation
    for ids in ([[7]], [[3, 4]], [list(range(40))]):
        tokens = torch.tensor(ids)
        with torch.no_grad():
            assert_same_bits(model(tokens).logits, eager(tokens).logits, str(len(ids[0])))
    assert unpacked
    assert max(unpacked) < model.model.layers[0].mlp.experts.num_experts


@pytest.mark.parametrize("wanted", [2, 3, 4])
def test_where_most_experts_are_wanted_all_are_unpacked_at_once(
    wanted: int, unpacked: list[int]
) -> None:
    model, eager = pair(mixtral, "eager")
    hidden = torch.randn(6, 64)
    index, weights = torch.arange(12).view(6, 2) % wanted, torch.rand(6, 2)
    experts, expected = (each.model.layers[0].mlp.experts for each in (model, eager))
    assert experts.num_experts == 4
    with torch.no_grad():
        assert_same_bits(
            experts(hidden, index, weights), expected(hidden, index, weights), str(wanted)
        )
    assert unpacked == ([wanted] * 2 if wanted < 4 else [])


def test_for_long_prompts_all_are_unpacked_at_once(unpacked: list[int]) -> None:
    model, eager = pair(mixtral, "eager")
    tokens = torch.full((1, 40), 7)
    with torch.no_grad():
        assert_same_bits(model(tokens).logits, eager(tokens).logits, "logits")
    assert not unpacked


def test_of_small_experts_all_are_unpacked_at_once(
    unpacked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    model, eager = pair(mixtral, "eager")
    tokens = torch.tensor([[7]])
    with torch.no_grad():
        assert_same_bits(model(tokens).logits, eager(tokens).logits, "logits")
    assert not unpacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block_size", [32, 64, 2048, 4096])
@pytest.mark.parametrize(
    "shape", [(6, 64, 64), (5, 256, 64), (5, 96, 32), (7, 32, 96), (3, 33, 192)], ids=str
)
def test_experts_are_unpacked_with_the_bits_of_the_whole(
    shape: tuple[int, int, int], block_size: int, dtype: torch.dtype
) -> None:
    """Where rows are whole blocks; blocks of nested scales may begin in one expert's."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts = shape[0]
            self.down_proj = nn.Parameter(torch.randn(shape, dtype=dtype))

    for nested in (True, False):
        torch.manual_seed(1)
        module: Any = Experts()
        scheme = dormant.FourBit(block_size=block_size, nested=nested)
        dormant.quantize(module, scheme, parameters=["down_proj"])
        alone = shape[2] % block_size == 0
        assert few_experts._has_whole_blocks(module, "down_proj") is alone
        if alone:
            whole, chosen = module.down_proj, torch.tensor([0, 2, shape[0] - 1])
            packed = module.parametrizations.down_proj
            few = few_experts._unpacked(packed.original, packed[0].quant_state, chosen)
            assert_same_bits(few, whole[chosen], "unpacked")


def test_gradients_reach_the_inputs() -> None:
    model, eager = pair(mixtral, "eager")
    gradients = []
    for each in (model, eager):
        inputs = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(2))
        inputs.requires_grad_()
        each(inputs_embeds=inputs).logits.sum().backward()
        gradients.append(inputs.grad)
    assert_same_bits(gradients[0], gradients[1], "gradient")


def test_what_is_not_known_to_be_indexed_is_left_to_the_library(unpacked: list[int]) -> None:
    model, eager = pair(qwen3_moe, "grouped_mm")
    for each in (model, eager):
        for layer in each.model.layers:
            layer.mlp.experts.register_buffer("scale_of_experts", torch.ones(8))
    tokens = torch.tensor([[3]])
    assert_same_bits(model(tokens).logits, eager(tokens).logits, "logits")
    assert not unpacked


def test_blocks_that_cross_rows_are_unpacked_as_the_library_does(unpacked: list[int]) -> None:
    model, eager = pair(qwen3_moe, "grouped_mm", block_size=4096)
    tokens = torch.tensor([[3]])
    assert_same_bits(model(tokens).logits, eager(tokens).logits, "logits")
    assert not unpacked


def test_generated_tokens_are_the_same() -> None:
    model, eager = pair(qwen3_moe, "grouped_mm")
    tokens = [
        each.generate(torch.tensor([[3, 5]]), max_new_tokens=5, do_sample=False, pad_token_id=0)
        for each in (model, eager)
    ]
    assert torch.equal(tokens[0], tokens[1])


def test_the_configuration_of_other_models_stays() -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4)
    other = transformers.MixtralForCausalLM(config)
    before = config._experts_implementation

    def check(packed: nn.Module, part: Any) -> None:
        dormant.quantize(packed, "nf4", skip=())
        assert part.config._experts_implementation == f"dormant_{before}"
        assert config._experts_implementation == before
        assert other.config._experts_implementation == before

    with dormant.lazy_init():
        alone = transformers.MixtralForCausalLM(config)
        inner = transformers.MixtralForCausalLM(config)
        wrapped = nn.ModuleDict({"inner": inner})
        experts = type(other.model.layers[0].mlp.experts)(config)
    check(alone, alone)
    check(wrapped, inner)
    check(experts, experts)
    assert inner.model.layers[1].mlp.experts.config is inner.model.config


def test_any_implementation_can_be_chosen_afterwards(tmp_path: Any) -> None:
    model, eager = pair(mixtral, "eager")
    tokens = torch.tensor([[3]])
    model.set_experts_implementation("grouped_mm")
    eager.set_experts_implementation("grouped_mm")
    assert_same_bits(model(tokens).logits, eager(tokens).logits, "logits")
    model.set_experts_implementation("dormant_grouped_mm")
    assert_same_bits(model(tokens).logits, eager(tokens).logits, "logits")
    duplicate = copy.deepcopy(model)
    assert_same_bits(duplicate(tokens).logits, eager(tokens).logits, "copy")
    model.config.save_pretrained(tmp_path)
    assert "dormant" not in (tmp_path / "config.json").read_text()


def test_experts_that_are_not_packed_compute_as_ever() -> None:
    model, _ = pair(mixtral, "eager")
    assert "dormant_eager" in ALL_EXPERTS_FUNCTIONS
    plain, expected = built(mixtral, lazily=False), built(mixtral, lazily=False)
    plain.set_experts_implementation("dormant_eager")
    expected.set_experts_implementation("eager")
    tokens = torch.tensor([[3, 9]])
    assert_same_bits(plain(tokens).logits, expected(tokens).logits, "logits")
    assert model.config._experts_implementation == "dormant_eager"
