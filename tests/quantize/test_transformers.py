"""Models of transformers: equal to `from_pretrained` with a BitsAndBytesConfig, and loadable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peers import assert_same_quantized, assert_same_state
from transformers import BitsAndBytesConfig

import dormant
from compare import assert_same_bits

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
MODELS: dict[str, tuple[type[Any], transformers.PreTrainedConfig]] = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**GROUPED)),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig(**GROUPED)),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**GROUPED)),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**GROUPED, head_dim=16)),
    "bert": (transformers.BertModel, transformers.BertConfig(**SMALL)),
    "bert head": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**SMALL, num_labels=32),
    ),
    "opt": (
        transformers.OPTForCausalLM,
        transformers.OPTConfig(**SMALL, ffn_dim=128, word_embed_proj_dim=64),
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96),
    ),
}
CONFIGURATIONS = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}


def saved(name: str, folder: Path) -> tuple[type[Any], transformers.PreTrainedConfig]:
    kind, configuration = MODELS[name]
    torch.manual_seed(11)
    kind(configuration).save_pretrained(folder)
    return kind, configuration


def ours(kind: type[Any], folder: Path, scheme: Any, dtype: torch.dtype, **options: Any) -> Any:
    # As the library builds it: parameters in the dtype, buffers as the code computes them.
    with dormant.lazy_init(dtype=dtype):
        model = kind(transformers.AutoConfig.from_pretrained(folder))
    dormant.quantize(model, scheme, **options)
    dormant.load(model, folder, missing="error")
    return model.eval()


def assert_same_models(mine: Any, theirs: Any) -> None:
    assert_same_state(mine, theirs)
    quantized = {
        name: module for name, module in theirs.named_modules() if "bit" in type(module).__name__
    }
    assert quantized
    for name, module in mine.named_modules():
        if name in quantized:
            # transformers notes the class that was replaced.
            module.source_cls = quantized[name].source_cls
            if type(module.bias) is torch.nn.Parameter:
                module.bias.requires_grad_(False)
            assert_same_quantized(module, quantized[name])
        else:
            assert type(module) is type(theirs.get_submodule(name))
    for name in ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        assert getattr(mine, name, None) == getattr(theirs, name, None), name
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert_same_bits(mine(tokens)[0], theirs(tokens)[0], "output")


@pytest.mark.parametrize("scheme", list(CONFIGURATIONS))
@pytest.mark.parametrize("name", list(MODELS))
def test_same_as_from_pretrained(name: str, scheme: str, tmp_path: Path) -> None:
    kind, _ = saved(name, tmp_path)
    theirs = kind.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**CONFIGURATIONS[scheme]),
        dtype=torch.bfloat16,
    )
    mine = ours(kind, tmp_path, BitsAndBytesConfig(**CONFIGURATIONS[scheme]), torch.bfloat16)
    assert_same_models(mine, theirs)


def test_skip_modules_of_the_configuration(tmp_path: Path) -> None:
    kind, _ = saved("llama", tmp_path)

    def configuration() -> BitsAndBytesConfig:
        return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["q_proj", "layers.1"])

    theirs = kind.from_pretrained(
        tmp_path, quantization_config=configuration(), dtype=torch.float32
    )
    mine = ours(kind, tmp_path, configuration(), torch.float32)
    assert "Linear4bit" in type(mine.lm_head).__name__
    assert_same_models(mine, theirs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_what_is_saved_loads_in_transformers(name: str, scheme: str, tmp_path: Path) -> None:
    kind, _ = saved(name, tmp_path / "float")
    mine = ours(kind, tmp_path / "float", scheme, torch.float32)
    mine.save_pretrained(tmp_path / "packed")
    theirs = kind.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    assert_same_state(theirs, mine)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert_same_bits(theirs(tokens)[0], mine(tokens)[0], "output")


def test_the_configuration_a_model_was_made_from_stays_as_it_was() -> None:
    _, configuration = MODELS["llama"]
    before = configuration.to_dict()
    with dormant.lazy_init():
        model = transformers.LlamaForCausalLM(configuration)
    dormant.quantize(model, "nf4")
    assert configuration.to_dict() == before
    assert not hasattr(configuration, "_is_quantized")
    assert model.config is model.model.config is model.model.layers[0].self_attn.config
    assert model.config.quantization_config.load_in_4bit


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_adapters_on_a_lazy_quantized_model(scheme: str, tmp_path: Path) -> None:
    kind, configuration = saved("llama", tmp_path)
    adapters = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    with dormant.lazy_init():
        model = kind(configuration)
        dormant.quantize(model, BitsAndBytesConfig(**CONFIGURATIONS[scheme]))
        mine = peft.get_peft_model(model, adapters)
    assert dormant.is_lazy(mine.base_model.model.model.layers[0].self_attn.q_proj.weight)

    def adapted(name: str) -> str:
        for target in ("q_proj", "v_proj"):
            name = name.replace(f"{target}.", f"{target}.base_layer.")
        return f"base_model.model.{name}"

    report = dormant.load(mine, tmp_path, rename=adapted)
    assert all("lora" in name for name in report.missing_keys)
    assert len(report.missing_keys) == 8
    theirs = kind.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**CONFIGURATIONS[scheme]),
        dtype=torch.float32,
    )
    # The second matrix of each adapter is zero.
    with torch.no_grad():
        tokens = torch.arange(12).view(2, 6)
        assert_same_bits(mine.eval()(tokens)[0], theirs.eval()(tokens)[0], "output")


def test_own_skips_are_in_the_saved_configuration(tmp_path: Path) -> None:
    kind, _ = saved("llama", tmp_path / "float")
    mine = ours(kind, tmp_path / "float", "nf4", torch.float32, skip=["down_proj", "lm_head"])
    mine.save_pretrained(tmp_path / "packed")
    theirs = kind.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    assert_same_state(theirs, mine)
    assert type(theirs.model.layers[0].mlp.down_proj) is torch.nn.Linear


def test_saving_writes_the_file_that_transformers_writes(tmp_path: Path) -> None:
    kind, _ = saved("llama", tmp_path / "float")
    configuration = CONFIGURATIONS["nf4"]
    theirs = kind.from_pretrained(
        tmp_path / "float",
        quantization_config=BitsAndBytesConfig(**configuration),
        dtype=torch.bfloat16,
    )
    mine = ours(kind, tmp_path / "float", BitsAndBytesConfig(**configuration), torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    mine.save_pretrained(tmp_path / "mine")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "mine" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_peft_adds_its_adapters_to_the_quantized_layers(scheme: str, tmp_path: Path) -> None:
    kind, _ = saved("llama", tmp_path)
    mine = ours(kind, tmp_path, BitsAndBytesConfig(**CONFIGURATIONS[scheme]), torch.float32)
    theirs = kind.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**CONFIGURATIONS[scheme]),
        dtype=torch.float32,
    )
    adapters = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    outputs = []
    for model in (mine, theirs):
        torch.manual_seed(4)
        adapted = peft.get_peft_model(model, adapters).eval()
        layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
        assert type(layer).__module__ == "peft.tuners.lora.bnb"
        with torch.no_grad():
            outputs.append(adapted(torch.arange(12).view(2, 6))[0])
    assert_same_bits(outputs[0], outputs[1], "output")


def test_adapters_that_are_there_before_keep_their_precision(tmp_path: Path) -> None:
    kind, configuration = saved("llama", tmp_path)
    adapters = peft.LoraConfig(target_modules=["q_proj"])
    with dormant.lazy_init():
        model = peft.get_peft_model(kind(configuration), adapters)
    report = dormant.quantize(model, "nf4")
    names = {layer.name for layer in report.layers}
    assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer" in names
    assert all("lora" in name or "lm_head" in name for name in report.skipped)
    assert any("lora_A" in name for name in report.skipped)
    dormant.materialize(model)
    with torch.no_grad():
        output = model(torch.arange(12).view(2, 6))[0]
    assert output.isfinite().all()


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_adapters_trained_saved_and_merged_as_on_the_librarys_own_model(
    scheme: str, tmp_path: Path
) -> None:
    """QLoRA as people do it, with gradient checkpointing; the base stays lazy until prepared."""
    kind, _ = saved("llama", tmp_path / "float")

    def scheme_of() -> BitsAndBytesConfig:
        return BitsAndBytesConfig(**CONFIGURATIONS[scheme])

    theirs: Any = kind.from_pretrained(
        tmp_path / "float", quantization_config=scheme_of(), dtype=torch.bfloat16
    )
    theirs = peft.prepare_model_for_kbit_training(theirs)
    with dormant.lazy_init(dtype=torch.bfloat16):
        mine: Any = kind(transformers.AutoConfig.from_pretrained(tmp_path / "float"))
    dormant.quantize(mine, scheme_of())
    dormant.load(mine, tmp_path / "float", missing="error", materialize=False)
    mine = peft.prepare_model_for_kbit_training(mine)
    assert all(dormant.is_lazy(parameter) for parameter in mine.parameters())
    dormant.materialize(mine)
    assert_same_state(mine, theirs)

    adapters = peft.LoraConfig(target_modules="all-linear", r=4, task_type="CAUSAL_LM")
    tokens = torch.arange(12).view(2, 6)
    losses = []
    for name, model in (("mine", mine), ("theirs", theirs)):
        torch.manual_seed(7)
        adapted = peft.get_peft_model(model, adapters).train()
        trained = [each for each in adapted.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(2):
            loss = adapted(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        adapted.save_pretrained(tmp_path / name)
    assert losses[:2] == losses[2:]
    assert losses[1] < losses[0]
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "mine" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()

    fresh = ours(kind, tmp_path / "float", scheme_of(), torch.bfloat16)
    merged = peft.PeftModel.from_pretrained(fresh, tmp_path / "mine").merge_and_unload()
    other = kind.from_pretrained(
        tmp_path / "float", quantization_config=scheme_of(), dtype=torch.bfloat16
    )
    expected = peft.PeftModel.from_pretrained(other, tmp_path / "theirs").merge_and_unload()
    assert_same_state(merged, expected)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_files_in_several_shards_go_both_ways(scheme: str, tmp_path: Path) -> None:
    kind, _ = saved("llama", tmp_path / "float")
    theirs = kind.from_pretrained(
        tmp_path / "float",
        quantization_config=BitsAndBytesConfig(**CONFIGURATIONS[scheme]),
        dtype=torch.bfloat16,
    )
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    configuration = BitsAndBytesConfig(**CONFIGURATIONS[scheme])
    mine = ours(kind, tmp_path / "theirs", configuration, torch.bfloat16)
    assert_same_state(mine, theirs)
    mine.save_pretrained(tmp_path / "mine", max_shard_size="40KB")
    assert len(list((tmp_path / "mine").glob("*.safetensors"))) > 1
    again = kind.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16)
    assert_same_state(again, theirs)
