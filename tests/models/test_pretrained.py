"""`from_pretrained` inside the context gives what the same call gives outside.

The checkpoints are local and small, and lack some of the keys: what they lack is initialized, from
the same random numbers as in eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from catalog import Model
from libraries import models

import dormant
from compare import Comparison, compare

ROWS = {
    row.name: row for library in ("transformers", "timm", "diffusers") for row in models(library)
}


def saved(row: Model, folder: Path, *, without: Iterable[str] = (), **options: Any) -> Path:
    """Saves a model of other random values as a checkpoint that lacks some keys.

    Args:
        row: The model.
        folder: Where to save.
        without: Keys whose names start with one of these are dropped; each has to drop some.
        options: For `save_pretrained`.
    """
    torch.manual_seed(1234)
    row.build().save_pretrained(folder, **options)
    dropped = dict.fromkeys(without, 0)
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="pt") as entries:
            metadata = entries.metadata()
        state = safetensors.torch.load_file(file)
        for prefix in without:
            for key in [key for key in state if key.startswith(prefix)]:
                del state[key]
                dropped[prefix] += 1
        safetensors.torch.save_file(state, file, metadata=metadata)
    assert all(dropped.values()), f"nothing to drop: {dropped}"
    return folder


def assert_loads_as_in_eager(
    load: Callable[[], torch.nn.Module], *, min_tensors: int = 10
) -> Comparison:
    """`compare` without a claim about laziness: a checkpoint's values are read as they are met."""
    return compare(load, expect_lazy=None, min_tensors=min_tensors, min_bytes=100_000)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("LlamaForCausalLM", ["model.layers.0.mlp", "model.norm", "lm_head"]),
        ("LlamaForCausalLM-tied-llama3-rope", ["model.embed_tokens"]),
        ("GPT2LMHeadModel", ["transformer.h.1", "transformer.wpe"]),
        ("BertForPreTraining", ["cls.", "bert.pooler"]),
        ("T5ForConditionalGeneration", ["decoder.block.1", "shared"]),
        ("BloomForCausalLM", ["transformer.h.0"]),
        ("OPTForCausalLM", ["model.decoder.layers.0", "model.decoder.project_out"]),
        ("MixtralForCausalLM", ["model.layers.1"]),
        ("MambaForCausalLM", ["backbone.layers.0.mixer"]),
        ("ViTModel", ["embeddings.cls_token", "encoder", "pooler"]),
        ("SwinModel", ["encoder.layers.0"]),
        ("ConvNextModel", ["encoder.stages.1"]),
        ("ResNetForImageClassification", ["resnet.embedder", "classifier"]),
        ("CLIPModel", ["text_model.embeddings", "visual_projection"]),
        ("Blip2ForConditionalGeneration", ["query_tokens", "qformer"]),
        (
            "Wav2Vec2ForCTC",
            ["wav2vec2.masked_spec_embed", "wav2vec2.feature_projection", "lm_head"],
        ),
        ("HubertModel", ["feature_projection"]),
        ("WhisperModel", ["decoder.layers.0", "encoder.embed_positions"]),
        ("DebertaModel", ["encoder.rel_embeddings"]),
        ("SamModel", ["mask_decoder"]),
    ],
)
def test_missing_keys_are_initialized_as_by_the_library(
    name: str, without: list[str], tmp_path: Path
) -> None:
    folder = saved(ROWS[name], tmp_path, without=without)
    kind = type(ROWS[name].build())
    assert_loads_as_in_eager(lambda: kind.from_pretrained(folder))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForPreTraining", "Wav2Vec2ForCTC"])
def test_reports_of_missing_and_unexpected_keys_are_as_in_eager(name: str, tmp_path: Path) -> None:
    folder = saved(ROWS[name], tmp_path)
    file = next(folder.glob("*.safetensors"))
    state = safetensors.torch.load_file(file)
    dropped = sorted(state)[3]
    state["surplus.weight"] = state.pop(dropped).clone()
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    kind = type(ROWS[name].build())
    _, outside = kind.from_pretrained(folder, output_loading_info=True)
    with dormant.lazy_init():
        _, inside = kind.from_pretrained(folder, output_loading_info=True)
    assert inside == outside
    assert inside["missing_keys"]
    assert inside["unexpected_keys"]


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("BertModel", "BertForSequenceClassification"),
        ("ViTModel", "ViTForImageClassification"),
        ("LlamaModel", "LlamaForCausalLM"),
        ("Wav2Vec2Model", "Wav2Vec2ForCTC"),
        ("SwinModel", "SwinForMaskedImageModeling"),
    ],
)
def test_a_new_head_on_a_saved_body(body: str, head: str, tmp_path: Path) -> None:
    folder = saved(ROWS[body], tmp_path)
    kind = getattr(transformers, head)
    assert_loads_as_in_eager(lambda: kind.from_pretrained(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, "auto"])
def test_dtypes(dtype: torch.dtype | str, tmp_path: Path) -> None:
    row = ROWS["LlamaForCausalLM"]
    folder = saved(
        Model("half", lambda: row.build().bfloat16()), tmp_path, without=["model.layers.0.mlp"]
    )
    assert_loads_as_in_eager(
        lambda: transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    )


def test_sharded_checkpoint(tmp_path: Path) -> None:
    folder = saved(
        ROWS["LlamaForCausalLM"], tmp_path, without=["model.layers.1"], max_shard_size="100KB"
    )
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_loads_as_in_eager(lambda: transformers.LlamaForCausalLM.from_pretrained(folder))


def test_mismatched_sizes_are_initialized_as_in_eager(tmp_path: Path) -> None:
    folder = saved(ROWS["BertForSequenceClassification"], tmp_path)

    def load() -> torch.nn.Module:
        return transformers.BertForSequenceClassification.from_pretrained(
            folder, num_labels=7, ignore_mismatched_sizes=True
        )

    assert load().classifier.weight.shape == (7, 64)
    assert_loads_as_in_eager(load)


def test_explicit_state_dict(tmp_path: Path) -> None:
    folder = saved(ROWS["GPT2LMHeadModel"], tmp_path)
    state = transformers.GPT2LMHeadModel.from_pretrained(folder).state_dict()
    del state["transformer.h.0.attn.c_attn.weight"]
    config = transformers.GPT2LMHeadModel.config_class.from_pretrained(folder)
    assert_loads_as_in_eager(
        lambda: transformers.GPT2LMHeadModel.from_pretrained(
            None, config=config, state_dict=dict(state)
        )
    )


def test_auto_classes(tmp_path: Path) -> None:
    folder = saved(ROWS["Qwen3ForCausalLM"], tmp_path, without=["model.layers.0.self_attn"])
    assert_loads_as_in_eager(lambda: transformers.AutoModelForCausalLM.from_pretrained(folder))
    config = transformers.AutoConfig.from_pretrained(folder)
    counts = compare(
        lambda: transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16),
        expect_lazy=0.99,
        min_tensors=10,
    )
    assert counts.nbytes > 100_000


def test_resized_embeddings(tmp_path: Path) -> None:
    folder = saved(ROWS["LlamaForCausalLM"], tmp_path)

    def load() -> torch.nn.Module:
        model = transformers.LlamaForCausalLM.from_pretrained(folder)
        # The new rows are drawn around the mean of the old ones.
        model.resize_token_embeddings(600)
        return model

    assert_loads_as_in_eager(load)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL", "DiTTransformer2DModel"])
def test_diffusers_checkpoint(name: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    folder = saved(ROWS[name], tmp_path)
    kind = type(ROWS[name].build())
    assert_loads_as_in_eager(
        lambda: kind.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)
    )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_timm_checkpoint(name: str, tmp_path: Path) -> None:
    import timm

    file = tmp_path / "model.safetensors"
    torch.manual_seed(1234)
    size = {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 4} if "vit" in name else {}
    safetensors.torch.save_file(timm.create_model(name, **size).state_dict(), file)
    assert_loads_as_in_eager(
        lambda: timm.create_model(
            name, pretrained=True, num_classes=5, pretrained_cfg_overlay={"file": str(file)}, **size
        )
    )
