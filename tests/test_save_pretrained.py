"""`save` of a model of transformers: every file is the one that `save_pretrained` writes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dormant

transformers = pytest.importorskip("transformers")

LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


@pytest.fixture(autouse=True)
def _same_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # Building a model makes transformers put a new module object in place of itself, and tests that
    # patch the one they imported would patch nothing: it is put back.
    monkeypatch.setitem(sys.modules, "transformers", transformers)


def gpt2() -> Any:
    config = transformers.GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=300)
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))


def tied_llama() -> Any:
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config)


def t5() -> Any:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=300
    )
    return transformers.T5ForConditionalGeneration(config)


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.BertForMaskedLM(config)


def mixtral() -> Any:
    """Its experts are one tensor in the model and many in the file."""
    config = transformers.MixtralConfig(**LLAMA, num_key_value_heads=2, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def clip() -> Any:
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**part, "num_attention_heads": 4, "vocab_size": 300},
        vision_config={**part, "num_attention_heads": 4, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    return transformers.CLIPModel(config)


def half() -> Any:
    return llama().to(torch.bfloat16)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_files(got: Path, expected: Path) -> None:
    assert files_of(got).keys() == files_of(expected).keys()
    for name, data in files_of(expected).items():
        assert (got / name).read_bytes() == data, name


BUILDS = [gpt2, llama, tied_llama, t5, bert, mixtral, clip, half]


@pytest.mark.parametrize("size", ["5GB", "60KB"])
@pytest.mark.parametrize("build", BUILDS)
def test_the_files_are_those_of_save_pretrained(
    build: Callable[[], Any], size: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    with dormant.lazy_init():
        lazy = build()
    lazy_before = [dormant.is_lazy(tensor) for tensor in lazy.parameters()]
    assert sum(lazy_before) >= len(lazy_before) - 1  # CLIP reads its scale
    torch.manual_seed(3)
    eager = build()
    eager.save_pretrained(tmp_path / "expected", max_shard_size=size)
    assert len(list((tmp_path / "expected").glob("model*"))) > 2 or size == "5GB"
    for name, model in (("lazy", lazy), ("real", eager)):
        dormant.save(model, tmp_path / name, max_shard_size=size)
        assert_same_files(tmp_path / name, tmp_path / "expected")
    assert [dormant.is_lazy(tensor) for tensor in lazy.parameters()] == lazy_before


@pytest.mark.parametrize("build", [mixtral, tied_llama])
def test_a_single_file_has_the_names_of_save_pretrained(
    build: Callable[[], Any], tmp_path: Path
) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    dormant.save(model, tmp_path / "one.safetensors", max_shard_size=100)
    expected = (tmp_path / "model.safetensors").read_bytes()
    assert (tmp_path / "one.safetensors").read_bytes() == expected


def test_the_configuration_of_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = half()
    before = model.config.to_dict()
    dormant.save(model, tmp_path)
    assert model.config.to_dict() == before


def test_names_that_are_ignored_on_save_are_left_out(tmp_path: Path) -> None:
    model = llama()
    model._keys_to_ignore_on_save = ["model.norm.weight"]
    model.save_pretrained(tmp_path / "expected")
    dormant.save(model, tmp_path / "got")
    assert_same_files(tmp_path / "got", tmp_path / "expected")
    assert "model.norm.weight" not in dormant.open_checkpoint(tmp_path / "got")


@pytest.mark.parametrize("lazily", [False, True])
def test_names_of_an_earlier_version_are_those_of_the_file(lazily: bool, tmp_path: Path) -> None:
    """A model remembers how the names of the file that it came from were converted."""
    mixtral().save_pretrained(tmp_path / "old")
    load = transformers.MixtralForCausalLM.from_pretrained
    load(tmp_path / "old").save_pretrained(tmp_path / "expected", max_shard_size="60KB")
    if lazily:
        with dormant.lazy_init():
            model = load(tmp_path / "old")
    else:
        model = load(tmp_path / "old")
    dormant.save(model, tmp_path / "got", max_shard_size="60KB")
    assert_same_files(tmp_path / "got", tmp_path / "expected")


def test_ties_that_the_model_does_not_declare_are_all_read_again(tmp_path: Path) -> None:
    """`save_pretrained` refuses them, since the second name would be missing."""
    with dormant.lazy_init():
        model = llama()
        model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
        flat = torch.nn.Parameter(torch.empty(128).normal_())
        model.model.norm.weight = torch.nn.Parameter(flat[:64])
        model.model.layers[0].input_layernorm.weight = torch.nn.Parameter(flat[32:96])
    dormant.save(model, tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("size", ["5GB", "60KB"])
def test_files_of_a_quantized_model(scheme: str, size: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    llama().save_pretrained(tmp_path / "plain")
    kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = transformers.BitsAndBytesConfig(
        **(kind if scheme == "nf4" else {"load_in_8bit": True})
    )
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config
    )
    model.save_pretrained(tmp_path / "expected", max_shard_size=size)
    dormant.save(model, tmp_path / "got", max_shard_size=size)
    assert_same_files(tmp_path / "got", tmp_path / "expected")
    from dormant.integrations.transformers import from_pretrained

    lazy = from_pretrained(
        transformers.LlamaForCausalLM,
        tmp_path / "plain",
        quantization_config=config,
        materialize=False,
    )
    dormant.save(lazy, tmp_path / "lazy", max_shard_size=size)
    assert_same_files(tmp_path / "lazy", tmp_path / "expected")


def test_an_adapter_is_saved_as_peft_saves_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = llama()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "expected")
    dormant.save(model, tmp_path / "got")
    assert_same_files(tmp_path / "got", tmp_path / "expected")


def test_a_model_that_its_quantizer_cannot_save_is_refused(tmp_path: Path) -> None:
    class Quantizer:
        class quantization_config:
            quant_method = "odd"

        def is_serializable(self) -> bool:
            return False

    model = llama()
    model.hf_quantizer = Quantizer()
    with pytest.raises(ValueError, match="quantized with odd"):
        dormant.save(model, tmp_path / "got")
    assert not list(tmp_path.iterdir())


def test_files_that_a_class_adds_are_saved_and_the_model_stays_as_it_is(tmp_path: Path) -> None:
    class Model(transformers.LlamaForCausalLM):
        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            self.generation_config.max_length = 7
            super().save_pretrained(save_directory, *args, **kwargs)
            Path(save_directory, "more.json").write_text("{}")

    model: Any = Model(transformers.LlamaConfig(**LLAMA))
    before = model.config.to_dict(), model.generation_config.to_dict()
    dormant.save(model, tmp_path / "got", max_shard_size="60KB")
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    model.save_pretrained(tmp_path / "expected", max_shard_size="60KB")
    assert_same_files(tmp_path / "got", tmp_path / "expected")
    assert (tmp_path / "got" / "more.json").exists()
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(NotImplementedError, match=r"Model overrides save_pretrained"):
        dormant.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
