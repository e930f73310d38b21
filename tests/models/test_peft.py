"""peft adapters put on inside the context, on a base that was built inside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from libraries import models

from compare import compare

ROWS = {row.name: row for row in models("transformers")}
LLAMA = ROWS["LlamaForCausalLM"].build
TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 8, "target_modules": TARGETS, **options})


LAZY: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lora,
    "lora-gaussian": lambda: lora(init_lora_weights="gaussian"),
    "lora-uninitialized-as-identity": lambda: lora(init_lora_weights=False),
    "rslora": lambda: lora(use_rslora=True),
    "lora-embedding": lambda: lora(target_modules=["embed_tokens", "lm_head"]),
    "lora-modules-to-save": lambda: lora(modules_to_save=["lm_head", "embed_tokens"]),
    "lora-bias": lambda: lora(lora_bias=True),
    "lora-rank-pattern": lambda: lora(rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 32}),
    "lora-layer-replication": lambda: lora(layer_replication=[[0, 2], [1, 2]]),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(target_modules=TARGETS),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], r=8),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
    "p-tuning": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=8, encoder_hidden_size=64
    ),
}

# Their start is computed from the base weights (norms, singular vectors, QR).
READERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "dora": lambda: lora(use_dora=True),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "pissa-niter": lambda: lora(init_lora_weights="pissa_niter_4"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "orthogonal": lambda: lora(init_lora_weights="orthogonal"),
}


@pytest.mark.parametrize("config", LAZY.values(), ids=LAZY.keys())
def test_adapter_stays_lazy(config: Callable[[], peft.PeftConfig]) -> None:
    compare(
        lambda: peft.get_peft_model(LLAMA(), config()),
        expect_lazy=0.99,
        min_tensors=24,
        min_bytes=500_000,
    )


@pytest.mark.parametrize("config", READERS.values(), ids=READERS.keys())
def test_adapter_computed_from_the_base_equals_eager(
    config: Callable[[], peft.PeftConfig],
) -> None:
    compare(
        lambda: peft.get_peft_model(LLAMA(), config()),
        # Decompositions of the base weights run when they are asked for.
        expect_lazy=None,
        min_tensors=24,
        min_bytes=500_000,
    )


def test_orthogonal_adapter_stays_lazy() -> None:
    compare(
        lambda: peft.get_peft_model(
            LLAMA(), peft.OFTConfig(target_modules=TARGETS, oft_block_size=16)
        ),
        # The index tables of its triangles are real: torch.triu_indices runs when it is called.
        expect_lazy=0.98,
        min_tensors=24,
        min_bytes=500_000,
    )


def test_two_adapters_and_a_switch() -> None:
    def build() -> torch.nn.Module:
        model = peft.get_peft_model(LLAMA(), lora())
        model.add_adapter("second", lora(r=4, target_modules=["k_proj"]))
        model.set_adapter("second")
        return model

    compare(build, expect_lazy=0.99, min_tensors=30)


def test_merging_inside_the_context() -> None:
    def build() -> torch.nn.Module:
        model = peft.get_peft_model(LLAMA(), lora(init_lora_weights=False))
        return model.merge_and_unload()

    # Merging multiplies the factors and adds the product: mathematics, though without grad.
    compare(build, expect_lazy=None, min_tensors=20, min_bytes=500_000)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_is_loaded_as_in_eager(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    peft.get_peft_model(LLAMA(), lora(init_lora_weights=False)).save_pretrained(tmp_path)
    compare(
        lambda: peft.PeftModel.from_pretrained(
            LLAMA(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
        ),
        # The adapter's entries are real; the base stays lazy, though not 99 % of everything.
        expect_lazy=0.8,
        min_tensors=30,
        min_bytes=500_000,
    )


def test_adapter_on_a_pretrained_base(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    LLAMA().save_pretrained(tmp_path)
    compare(
        lambda: peft.get_peft_model(
            transformers.LlamaForCausalLM.from_pretrained(tmp_path), lora()
        ),
        expect_lazy=None,  # the base is read from the checkpoint
        min_tensors=30,
        min_bytes=500_000,
    )


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("GPT2LMHeadModel", ["c_attn"]),
        ("ResNetForImageClassification", ["convolution"]),
        ("T5ForConditionalGeneration", ["q", "v"]),
    ],
)
def test_other_layer_kinds(name: str, targets: list[str]) -> None:
    compare(
        lambda: peft.get_peft_model(ROWS[name].build(), lora(target_modules=targets)),
        expect_lazy=0.99,
        min_tensors=24,
    )
