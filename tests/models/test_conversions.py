"""transformers' weight conversions, architecture by architecture, against the library's own.

`load` gives what `from_pretrained` gives of the same folder, and `save` writes what
`save_pretrained` writes, though neither reads or makes anything until the final tensor or file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shrunk
import torch
from libraries import models

import dormant
from compare import assert_same_bits

CATALOG = {row.name: row.build for row in models("transformers")}

# Rows of the catalog whose files have other names or layouts than the model.
ROWS = [
    "ASTForAudioClassification",
    "BeitForMaskedImageModeling",
    "ConditionalDetrForObjectDetection",
    "DINOv3ViTModel",
    "DeepseekV3ForCausalLM",
    "DeformableDetrForObjectDetection",
    "DeiTForImageClassificationWithTeacher",
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "EsmForMaskedLM",
    "FuyuForCausalLM",
    "Gemma3ForConditionalGeneration",
    "GPTNeoXForCausalLM",
    "IJepaModel",
    "InternVLForConditionalGeneration",
    "JambaForCausalLM",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "MimiModel",
    "MixtralForCausalLM",
    "MllamaForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "RTDetrForObjectDetection",
    "SegformerForSemanticSegmentation",
    "SwinForMaskedImageModeling",
    "SwinModel",
    "UperNetForSemanticSegmentation",
    "VideoMAEForPreTraining",
    "ViTForImageClassification",
    "ViTMAEForPreTraining",
    "ViTMSNModel",
    "ViTModel",
    "VivitModel",
    "YolosForObjectDetection",
]

# Architectures whose own configuration is small enough once it is shrunk.
SHRUNK = [
    "AfmoeForCausalLM",
    "AriaForConditionalGeneration",
    "AriaTextForCausalLM",
    "AudioFlamingo3ForConditionalGeneration",
    "AXK1ForCausalLM",
    "AXK2ForCausalLM",
    "AyaVisionForConditionalGeneration",
    "BeamForCausalLM",
    "ChineseCLIPModel",
    "CLIPTextModel",
    "CLIPVisionModel",
    "Cohere2MoeForCausalLM",
    "CohereAsrForConditionalGeneration",
    "ColModernVBertForRetrieval",
    "ColPaliForRetrieval",
    "ColQwen2ForRetrieval",
    "Cosmos3OmniForConditionalGeneration",
    "DeepseekV2ForCausalLM",
    "DeepseekV32ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "Ernie4_5_VLMoeForConditionalGeneration",
    "ExaoneMoeForCausalLM",
    "FlexOlmoForCausalLM",
    "FlintForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "Glm4vMoeForConditionalGeneration",
    "GlmMoeDsaForCausalLM",
    "GlmAsrForConditionalGeneration",
    "GraniteMoeForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "GteForMaskedLM",
    "HunYuanMoEV1ForCausalLM",
    "HYV3ForCausalLM",
    "HYV4ForCausalLM",
    "HyperCLOVAXVisionV2ForConditionalGeneration",
    "JevForDecision",
    "JinaEmbeddingsV3ForMaskedLM",
    "Kimi_K25ForConditionalGeneration",
    "Kolibri1ForCausalLM",
    "LagunaForCausalLM",
    "Lfm2MoeForCausalLM",
    "Lfm3VlVisionModel",
    "LlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "MellumForCausalLM",
    "MiMoV2FlashForCausalLM",
    "MiniCPMV4_6ForConditionalGeneration",
    "MiniMaxForCausalLM",
    "MiniMaxM2ForCausalLM",
    "Mistral3ForConditionalGeneration",
    "Molmo2TextModel",
    "MusicFlamingoForConditionalGeneration",
    "NomicBertForMaskedLM",
    "OlmoeForCausalLM",
    "OlmoHybridForCausalLM",
    "PaddleOCRVLForConditionalGeneration",
    "PhimoeForCausalLM",
    "PI0ForConditionalGeneration",
    "QianfanOCRForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    "Qwen2MoeForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
    "ShieldGemma2ForImageClassification",
    "SiglipVisionModel",
    "SolarOpenForCausalLM",
    "Step3p7ForConditionalGeneration",
    "T5Gemma2ForConditionalGeneration",
    "TimesFm2_5Model",
    "Tipsv2TextModel",
    "UltrabertForMaskedLM",
    "VideoLlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
    "VisionTextDualEncoderModel",
    "VoxtralForConditionalGeneration",
]

# What the library's `from_pretrained` leaves other than the file has it: it initializes the
# embedding again after loading it.
OVERWRITTEN = {"ChineseCLIPModel": ["text_model.embeddings.word_embeddings.weight"]}


def builder(name: str) -> Callable[[], Any]:
    return CATALOG[name] if name in ROWS else lambda: shrunk.build(name)


def filled(name: str) -> Any:
    """A real model of which no two tensors have the same values, unless they are tied."""
    torch.manual_seed(11)
    model = builder(name)()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_()
    return model


def lazy(name: str) -> Any:
    with dormant.lazy_init():
        return builder(name)()


def assert_same_files(got: Path, expected: Path) -> None:
    names = [sorted(file.name for file in folder.iterdir()) for folder in (got, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (got / name).read_bytes() == (expected / name).read_bytes(), name


def assert_same_tensors(got: Path, expected: Path) -> None:
    """Configurations may differ: from_pretrained notes the dtype in nested ones."""
    ours, theirs = (dict(dormant.open_checkpoint(folder)) for folder in (got, expected))
    assert ours.keys() == theirs.keys()
    dormant.materialize([ours, theirs])
    for name, tensor in theirs.items():
        assert_same_bits(tensor, ours[name], name)


@pytest.mark.parametrize("name", [*ROWS, *SHRUNK])
def test_load_is_from_pretrained_and_save_is_save_pretrained(name: str, tmp_path: Path) -> None:
    source = filled(name)
    folder, size = tmp_path / "source", "100KB"
    source.save_pretrained(folder, max_shard_size=size)
    dormant.save(source, tmp_path / "saved", max_shard_size=size)
    assert_same_files(tmp_path / "saved", folder)

    theirs = type(source).from_pretrained(folder)
    ours = lazy(name)
    converted = dormant.open_checkpoint(folder).for_model(ours)
    dormant.load(ours, folder, missing="error", unexpected="error", materialize=False)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    if name not in OVERWRITTEN:
        dormant.save(ours, tmp_path / "ours", max_shard_size=size)
        assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")

    dormant.materialize(ours)
    expected, original = theirs.state_dict(), source.state_dict()
    assert list(expected) == list(ours.state_dict())
    for key, tensor in ours.state_dict().items():
        assert_same_bits(original[key], tensor, key)
        if key not in OVERWRITTEN.get(name, ()):
            assert_same_bits(expected[key], tensor, key)
    assert converted.keys() <= expected.keys()  # of tied tensors there is one
    for key, entry in converted.entries.items():
        assert entry.shape == tuple(expected[key].shape)
    values = dict(converted)
    assert all(map(dormant.is_lazy, values.values()))
    dormant.materialize(values)
    for key, tensor in values.items():
        assert_same_bits(original[key], tensor, key)
