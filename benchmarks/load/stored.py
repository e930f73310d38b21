"""Checkpoints of Llamas in bfloat16, written by the libraries whose formats they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.llama import llama

FORMS = {"safetensors": "*.safetensors", "torch zip": "*.bin", "4 parts": "*.pth"}
PARTS = 4
# LLaMA's own names and those of transformers, outside of its layers and in them.
_OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# Along which dimension LLaMA's model divides each; what is not here, every part has whole.
_DIVIDED = {
    **dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0),
    **dict.fromkeys(("wo", "w2", "tok_embeddings"), 1),
}


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk.

    Attributes:
        folder: its files and the model's config.json.
        form: a key of FORMS. Parts have LLaMA's names, the others those of transformers.
        size: as `llama` takes it.
    """

    folder: str
    form: str
    size: str

    def files(self) -> list[Path]:
        """The files that hold tensors, in order."""
        return sorted(Path(self.folder).glob(FORMS[self.form]))

    def nbytes(self) -> int:
        """Bytes of these files."""
        return sum(path.stat().st_size for path in self.files())


def model_name(stored_name: str) -> str:
    """transformers' name for one of LLaMA's.

    The rows of wq and wk are in another order there, too, which costs no loader anything here:
    everybody leaves them as they are.
    """
    place = stored_name.removesuffix(".weight")
    if place in _OUTER:
        return f"{_OUTER[place]}.weight"
    _, number, inner = place.split(".", 2)
    return f"model.layers.{number}.{_INNER[inner]}.weight"


def divided_along(stored_name: str) -> int | None:
    """The dimension along which the parts divide the tensor of one of LLaMA's names."""
    return _DIVIDED.get(stored_name.split(".")[-2])


def empty_model(size: str) -> Any:
    """A Llama with parameters on the meta device and buffers that are real."""
    import accelerate

    with accelerate.init_empty_weights(include_buffers=False):
        return llama(size)


def write(folder: str, form: str, size: str) -> None:
    """Writes a checkpoint; its values do not depend on the format."""
    torch.manual_seed(0)
    with dormant.lazy_init(dtype=torch.bfloat16):
        model = llama(size)
    dormant.materialize(model, progress=False)
    path = Path(folder)
    path.mkdir(parents=True)
    if form == "safetensors":
        total = sum(parameter.nbytes for parameter in model.parameters())
        model.save_pretrained(path, max_shard_size=total // PARTS)
        return
    model.config.save_pretrained(path)
    state = model.state_dict()
    if form == "torch zip":
        torch.save(state, path / "pytorch_model.bin")
        return
    places = [*_OUTER, *(f"layers.{n}.{i}" for n in range(len(model.model.layers)) for i in _INNER)]
    for part in range(PARTS):
        tensors = {
            name: _part(state[model_name(name)], divided_along(name), part)
            for name in (f"{place}.weight" for place in places)
        }
        torch.save(tensors, path / f"consolidated.{part:02d}.pth")


def _part(whole: torch.Tensor, dim: int | None, part: int) -> torch.Tensor:
    chosen = whole if dim is None else whole.chunk(PARTS, dim)[part]
    return chosen.clone(memory_format=torch.contiguous_format)
