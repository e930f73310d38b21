"""`integrations.transformers` against the library's own `from_pretrained` and `from_config`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import safetensors
import safetensors.torch
import torch
import torchao.quantization
import transformers
from libraries import models
from same_model import assert_same, assert_same_output, both, drop_keys

import dormant
from dormant.integrations.transformers import from_config, from_pretrained

ROWS = {row.name: row for row in models("transformers")}
WORDS = {"input_ids": torch.arange(1, 13).view(2, 6)}
SOUND = {"input_values": torch.linspace(-1, 1, 4000).view(1, -1)}

# Inputs where a few are enough; None where only the tensors are compared.
ARCHITECTURES: dict[str, dict[str, torch.Tensor] | None] = {
    "BertForPreTraining": WORDS,
    "RobertaForMaskedLM": WORDS,
    "DebertaV2ForMaskedLM": WORDS,
    "ModernBertForMaskedLM": WORDS,
    "LlamaForCausalLM": WORDS,
    "LlamaForCausalLM-tied-llama3-rope": WORDS,
    "MixtralForCausalLM": WORDS,
    "Qwen3MoeForCausalLM": WORDS,
    "GemmaForCausalLM": WORDS,
    "Phi3ForCausalLM": WORDS,
    "GPT2LMHeadModel": WORDS,
    "GPTNeoXForCausalLM": WORDS,
    "BloomForCausalLM": WORDS,
    "FalconForCausalLM": WORDS,
    "OPTForCausalLM": WORDS,
    "MambaForCausalLM": WORDS,
    "T5ForConditionalGeneration": {**WORDS, "decoder_input_ids": WORDS["input_ids"]},
    "BartForConditionalGeneration": WORDS,
    "ViTForImageClassification": None,
    "SwinModel": None,
    "ConvNextModel": None,
    "ResNetForImageClassification": None,
    "CLIPModel": None,
    "Blip2ForConditionalGeneration": None,
    "LlavaForConditionalGeneration": None,
    "Wav2Vec2ForCTC": SOUND,
    "WhisperModel": None,
    "DetrForObjectDetection": None,
    "DeepseekV3ForCausalLM": WORDS,
    "GptOssForCausalLM": WORDS,
    "JambaForCausalLM": WORDS,
    "RwkvForCausalLM": WORDS,
    "XLNetLMHeadModel": WORDS,
    "SwitchTransformersForConditionalGeneration": {
        **WORDS,
        "decoder_input_ids": WORDS["input_ids"],
    },
    "MarianMTModel": None,
    "Swinv2ForImageClassification": None,
    "RTDetrForObjectDetection": None,
    "SamModel": None,
    "EncodecModel": None,
    "VitsModel": None,
    "PatchTSTForPretraining": None,
    "Qwen2VLForConditionalGeneration": None,
    "MllamaForConditionalGeneration": None,
}
# What is dropped has to be initialized, by each library's own rules.
MISSING = {
    "LlamaForCausalLM": ["model.layers.0.mlp", "lm_head"],
    "LlamaForCausalLM-tied-llama3-rope": ["model.embed_tokens"],
    "BertForPreTraining": ["cls.predictions.transform", "bert.pooler"],
    "MixtralForCausalLM": ["model.layers.1"],
    "GPT2LMHeadModel": ["transformer.h.1"],
    "Wav2Vec2ForCTC": ["lm_head"],
}


def saved(name: str, folder: Path, **options: Any) -> Any:
    """Saves other random values than those that construction under the tests' seed gives."""
    torch.manual_seed(1234)
    model = ROWS[name].build()
    model.save_pretrained(folder, **options)
    return type(model)


def test_there_are_enough_architectures() -> None:
    assert len(ARCHITECTURES) >= 20


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_is_that_of_from_pretrained(name: str, tmp_path: Path) -> None:
    kind = saved(name, tmp_path)
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path), lambda: from_pretrained(kind, tmp_path)
    )
    assert_same(expected, got, memory=False)
    inputs = ARCHITECTURES[name]
    if inputs is not None:
        assert_same_output(expected, got, inputs)


@pytest.mark.parametrize("name", MISSING)
def test_missing_keys_are_initialized_as_by_the_library(name: str, tmp_path: Path) -> None:
    kind = saved(name, tmp_path)
    drop_keys(tmp_path, *MISSING[name])
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path), lambda: from_pretrained(kind, tmp_path)
    )
    assert_same(expected, got, memory=False)


# A checkpoint of one class, read by another: what is lacking, left over, or below another name.
OTHER_CLASSES = [
    ("BertModel", "BertForSequenceClassification"),
    ("BertForSequenceClassification", "BertModel"),
    ("LlamaForCausalLM", "LlamaModel"),
    ("LlamaModel", "LlamaForCausalLM"),
    ("GPT2LMHeadModel", "GPT2ForTokenClassification"),
    ("T5ForConditionalGeneration", "T5EncoderModel"),
    ("ViTForImageClassification", "ViTModel"),
    ("LlavaForConditionalGeneration", "LlavaModel"),
]


@pytest.mark.parametrize(("saver", "reader"), OTHER_CLASSES)
def test_a_checkpoint_of_another_class(saver: str, reader: str, tmp_path: Path) -> None:
    saved(saver, tmp_path)
    kind: Any = getattr(transformers, reader)
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path, output_loading_info=True),
        lambda: from_pretrained(kind, tmp_path, output_loading_info=True),
    )
    assert_same(expected[0], got[0], memory=False)
    assert got[1] == expected[1]


@pytest.mark.parametrize("dtype", [None, "auto", "bfloat16", torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_dtypes_follow_the_library(name: str, dtype: Any, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    model = ROWS[name].build().bfloat16()
    model.save_pretrained(tmp_path)
    kind = type(model)
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path, dtype=dtype),
        lambda: from_pretrained(kind, tmp_path, dtype=dtype),
    )
    assert_same(expected, got, memory=False)


def test_a_checkpoint_in_many_files(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(kind.from_pretrained(tmp_path), from_pretrained(kind, tmp_path), memory=False)


def test_a_checkpoint_of_torch_save(tmp_path: Path) -> None:
    kind = saved("BertForPreTraining", tmp_path)
    file = tmp_path / "model.safetensors"
    torch.save(safetensors.torch.load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    assert_same(kind.from_pretrained(tmp_path), from_pretrained(kind, tmp_path), memory=False)


def test_auto_classes_and_the_saved_generation_settings(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    model: Any = ROWS["Qwen3ForCausalLM"].build()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    auto = transformers.AutoModelForCausalLM
    expected, got = auto.from_pretrained(tmp_path), from_pretrained(auto, tmp_path)
    assert got.generation_config.max_new_tokens == 7
    assert_same(expected, got, memory=False)
    words = torch.arange(1, 5).view(1, 4)
    assert torch.equal(*(m.generate(words, do_sample=False) for m in (expected, got)))


def test_a_new_head_and_other_sizes(tmp_path: Path) -> None:
    saved("BertForSequenceClassification", tmp_path)
    kind = transformers.BertForSequenceClassification
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True),
        lambda: from_pretrained(kind, tmp_path, num_labels=7, mismatched="init"),
    )
    assert got.classifier.weight.shape[0] == 7
    assert_same(expected, got, memory=False)


def test_keys_renamed_by_the_caller(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file(
        {name.replace("model.layers", "net.blocks"): t for name, t in state.items()},
        file,
        metadata={"format": "pt"},
    )
    mapping = {r"^net\.blocks": "model.layers"}
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path, key_mapping=dict(mapping)),
        lambda: from_pretrained(kind, tmp_path, key_mapping=dict(mapping), missing="error"),
    )
    assert_same(expected, got, memory=False)


def test_names_can_be_refused(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path)
    drop_keys(tmp_path, "model.norm")
    with pytest.raises(KeyError, match="model\\.norm\\.weight"):
        from_pretrained(kind, tmp_path, missing="error")
    with pytest.raises(KeyError, match="lm_head\\.weight"):
        from_pretrained(transformers.LlamaModel, tmp_path, unexpected="error")


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    kind = transformers.LlamaForCausalLM
    with pytest.raises(FileNotFoundError, match="expected a local folder"):
        from_pretrained(kind, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="missing must be one of"):
        from_pretrained(kind, tmp_path, missing="ignore")  # type: ignore[arg-type]
    saved("LlamaForCausalLM", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(safetensors.SafetensorError, match="incomplete metadata"):
        from_pretrained(kind, tmp_path)


def test_a_name_is_looked_up_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "models--org--tiny"
    snapshot = cached / "snapshots" / ("a" * 40)
    kind = saved("LlamaForCausalLM", snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    expected, got = both(
        lambda: kind.from_pretrained("org/tiny", local_files_only=True, **options),
        lambda: from_pretrained(kind, "org/tiny", **options),
    )
    assert_same(expected, got, memory=False)
    assert got.name_or_path == expected.name_or_path
    packed = from_pretrained(kind, "org/tiny", quantization_config="nf4", **options)
    assert packed.model.layers[0].mlp.up_proj.weight.dtype is torch.uint8
    fresh = from_config(transformers.AutoModelForCausalLM, "org/tiny", **options)
    assert type(fresh) is kind
    for name, wanted in (("org/other", options), ("org/tiny", {}), ("no/such/folder", options)):
        with pytest.raises(FileNotFoundError, match=r"neither a folder nor a model in the cache"):
            from_pretrained(kind, name, **wanted)
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        from_pretrained(kind, "org/tiny", revision="other", **options)


def test_it_can_stay_lazy_and_be_cast_later(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path)
    model = from_pretrained(kind, tmp_path, materialize=False)
    assert dormant.is_lazy(model)
    report = dormant.materialize(model, dtype=torch.bfloat16)
    assert report.count("checkpoint") == 21
    assert report.initialized_bytes == 0
    expected = kind.from_pretrained(tmp_path).to(torch.bfloat16)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize(
    ("name", "bits"),
    list(itertools.product(["LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"], BITS)),
)
def test_quantized_models_and_their_checkpoints(name: str, bits: str, tmp_path: Path) -> None:
    kind = saved(name, tmp_path / "float")

    def config() -> transformers.BitsAndBytesConfig:
        return transformers.BitsAndBytesConfig(**BITS[bits])

    expected = kind.from_pretrained(
        tmp_path / "float", quantization_config=config(), dtype=torch.bfloat16
    )
    got = from_pretrained(
        kind, tmp_path / "float", quantization_config=config(), dtype=torch.bfloat16
    )
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, WORDS)
    expected.save_pretrained(tmp_path / "packed")
    again = from_pretrained(kind, tmp_path / "packed")
    assert_same(kind.from_pretrained(tmp_path / "packed"), again, memory=False)
    assert_same_output(expected, again, WORDS)
    with pytest.raises(ValueError, match="already quantized"):
        from_pretrained(kind, tmp_path / "packed", quantization_config="nf4")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_quantizers_that_are_not_ours_are_the_librarys(name: str, tmp_path: Path) -> None:
    kind = saved(name, tmp_path)

    def config() -> transformers.TorchAoConfig:
        return transformers.TorchAoConfig(torchao.quantization.Int8WeightOnlyConfig())

    expected = kind.from_pretrained(tmp_path, quantization_config=config())
    got = from_pretrained(kind, tmp_path, quantization_config=config())
    assert_same(expected, got, memory=False)
    assert_same_output(expected, got, {**WORDS, **(ARCHITECTURES[name] or {})})


def test_what_the_library_takes_is_taken_by_its_names(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path)
    options: dict[str, Any] = {
        "local_files_only": True,
        "ignore_mismatched_sizes": True,
        "device_map": "cpu",
        "attn_implementation": "eager",
    }
    expected = kind.from_pretrained(tmp_path, torch_dtype=torch.float16, **options)
    got = from_pretrained(kind, tmp_path, torch_dtype=torch.float16, **options)
    assert got.dtype is torch.float16
    assert_same(expected, got, memory=False)

    def int8() -> transformers.BitsAndBytesConfig:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)

    lazy = from_pretrained(kind, tmp_path, quantization_config=int8(), materialize=False)
    assert dormant.materialize(lazy).value_reads == {}  # quantized while reading
    assert_same(kind.from_pretrained(tmp_path, quantization_config=int8()), lazy, memory=False)


def test_missing_weights_are_initialized_and_quantized(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path)
    drop_keys(tmp_path, "model.layers.0.mlp")
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path),
        lambda: from_pretrained(kind, tmp_path, quantization_config="nf4"),
    )
    for name in ("gate_proj", "up_proj", "down_proj"):
        weight = getattr(expected.model.layers[0].mlp, name).weight
        packed, state = bitsandbytes.functional.quantize_4bit(
            weight.detach(), quant_type="nf4", compress_statistics=True
        )
        layer = getattr(got.model.layers[0].mlp, name)
        assert torch.equal(layer.weight, packed)
        assert torch.equal(layer.weight.quant_state.absmax, state.absmax)


def test_no_full_precision_weight_is_formed_before_it_is_quantized(tmp_path: Path) -> None:
    kind = saved("LlamaForCausalLM", tmp_path)
    model = from_pretrained(kind, tmp_path, quantization_config="nf4", materialize=False)
    report = dormant.materialize(model)
    assert report.lazy_rate > 0.9  # the tables of codes are real
    assert report.value_reads == {}
    assert report.initialized_bytes == 0


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration", "SwinModel"])
def test_from_config_is_construction(name: str) -> None:
    torch.manual_seed(0)
    kind: Any = type(ROWS[name].build())
    config = ROWS[name].build().config
    expected, got = both(
        lambda: kind._from_config(config, dtype=torch.bfloat16),
        lambda: from_config(kind, config, dtype=torch.bfloat16),
    )
    assert_same(expected, got)


def test_from_config_of_a_folder_and_an_auto_class(tmp_path: Path) -> None:
    saved("LlamaForCausalLM", tmp_path)
    auto = transformers.AutoModelForCausalLM
    expected, got = both(
        lambda: auto.from_config(transformers.AutoConfig.from_pretrained(tmp_path)),
        lambda: from_config(auto, tmp_path),
    )
    assert_same(expected, got)
