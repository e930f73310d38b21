"""Adapters on lazy bases, against peft on eager ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from libraries import models
from same_model import assert_same, assert_same_output, both

import dormant
from dormant.integrations.peft import get_peft_model, load_adapter
from dormant.integrations.transformers import from_pretrained

LLAMA = {row.name: row for row in models("transformers")}["LlamaForCausalLM"].build
WORDS = {"input_ids": torch.arange(1, 13).view(2, 6)}
TARGETS = ["q_proj", "v_proj", "down_proj"]

ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(target_modules=TARGETS, use_dora=True),
    "olora": lambda: peft.LoraConfig(target_modules=TARGETS, init_lora_weights="olora"),
    "pissa": lambda: peft.LoraConfig(target_modules=TARGETS, init_lora_weights="pissa"),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "oft": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=32),
    "lokr": lambda: peft.LoKrConfig(target_modules=TARGETS),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], r=8),
    "loha": lambda: peft.LoHaConfig(target_modules=TARGETS),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}
# What the initialization factorises is real early; OFT makes its tables with numpy.
EARLY = {"pissa", "oft"}


def base(folder: Path) -> Path:
    torch.manual_seed(1234)
    LLAMA().save_pretrained(folder)
    return folder


def save_adapter(adapter: str, model: Path, folder: Path, seed: int = 99) -> None:
    """Writes a new adapter of the model in the other folder."""
    whole = transformers.LlamaForCausalLM.from_pretrained(model)
    torch.manual_seed(seed)
    peft.get_peft_model(whole, ADAPTERS[adapter]()).save_pretrained(folder)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_new_adapter_on_a_lazy_base(adapter: str, tmp_path: Path) -> None:
    kind = transformers.LlamaForCausalLM
    base(tmp_path)
    expected, got = both(
        lambda: peft.get_peft_model(kind.from_pretrained(tmp_path), ADAPTERS[adapter]()),
        lambda: get_peft_model(
            from_pretrained(kind, tmp_path, materialize=False), ADAPTERS[adapter]()
        ),
    )
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, WORDS)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_saved_adapter_on_a_lazy_base(adapter: str, tmp_path: Path) -> None:
    kind = transformers.LlamaForCausalLM
    base(tmp_path / "base")
    save_adapter(adapter, tmp_path / "base", tmp_path / "adapter")
    expected, got = both(
        lambda: peft.PeftModel.from_pretrained(
            kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        ),
        lambda: load_adapter(
            from_pretrained(kind, tmp_path / "base", materialize=False), tmp_path / "adapter"
        ),
    )
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, WORDS)


def test_a_second_adapter_of_the_same_model(tmp_path: Path) -> None:
    kind = transformers.LlamaForCausalLM
    base(tmp_path / "base")
    for number in (1, 2):
        save_adapter("lora", tmp_path / "base", tmp_path / f"adapter{number}", seed=number)

    def theirs() -> Any:
        model = kind.from_pretrained(tmp_path / "base")
        model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter1")
        model.load_adapter(tmp_path / "adapter2", "other")
        model.set_adapter("other")
        return model

    def ours() -> Any:
        model = from_pretrained(kind, tmp_path / "base", materialize=False)
        model = load_adapter(model, tmp_path / "adapter1", materialize=False)
        assert load_adapter(model, tmp_path / "adapter2", adapter_name="other") is model
        model.set_adapter("other")
        return model

    expected, got = both(theirs, ours)
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, WORDS)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_an_adapter_on_a_quantized_base(bits: str, tmp_path: Path) -> None:
    kind = transformers.LlamaForCausalLM
    base(tmp_path)

    def quantized() -> transformers.BitsAndBytesConfig:
        return transformers.BitsAndBytesConfig(**{bits: True})

    expected, got = both(
        lambda: peft.get_peft_model(
            kind.from_pretrained(tmp_path, quantization_config=quantized()), ADAPTERS["lora"]()
        ),
        lambda: get_peft_model(
            from_pretrained(kind, tmp_path, quantization_config=quantized(), materialize=False),
            ADAPTERS["lora"](),
        ),
    )
    layer = got.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer).__module__ == "peft.tuners.lora.bnb"
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, WORDS)


@pytest.mark.parametrize("adapter", sorted(ADAPTERS.keys() - EARLY))
def test_initializing_an_adapter_brings_nothing_to_life(adapter: str) -> None:
    with dormant.lazy_init():
        model = LLAMA()
    report = dormant.materialize(get_peft_model(model, ADAPTERS[adapter](), materialize=False))
    assert report.lazy_rate > 0.99
    assert report.value_reads == {}


@pytest.mark.parametrize("adapter", ["lora", "dora", "oft", "lokr"])
def test_an_adapter_is_merged_before_anything_is_read(adapter: str, tmp_path: Path) -> None:
    kind = transformers.LlamaForCausalLM
    base(tmp_path / "base")
    save_adapter(adapter, tmp_path / "base", tmp_path / "adapter")

    def ours() -> Any:
        model = from_pretrained(kind, tmp_path / "base", materialize=False)
        with dormant.lazy_init():
            merged = load_adapter(model, tmp_path / "adapter", materialize=False).merge_and_unload()
        report = dormant.materialize(merged)
        assert report.lazy_rate > 0.99
        assert report.value_reads == {}
        return merged

    expected, got = both(
        lambda: peft.PeftModel.from_pretrained(
            kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        ).merge_and_unload(),
        ours,
    )
    assert_same(expected, got, memory=False)


@pytest.mark.parametrize("quantized", [False, True])
def test_from_pretrained_of_transformers_takes_the_folder_of_an_adapter(
    quantized: bool, tmp_path: Path
) -> None:
    save_adapter("lora", base(tmp_path / "base"), tmp_path / "adapter")
    auto = transformers.AutoModelForCausalLM

    def config() -> Any:
        return transformers.BitsAndBytesConfig(load_in_4bit=True) if quantized else None

    expected, got = both(
        lambda: auto.from_pretrained(tmp_path / "adapter", quantization_config=config()),
        lambda: from_pretrained(auto, tmp_path / "adapter", quantization_config=config()),
    )
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, WORDS)
    with pytest.raises(ValueError, match=r"contains a peft adapter.*load_adapter"):
        from_pretrained(auto, tmp_path / "adapter", quantization_config="nf4")


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="load_adapter"):
        load_adapter(torch.nn.Linear(2, 2), "nowhere at all")
