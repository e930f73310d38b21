"""A Llama of 1.1 billion parameters: a random checkpoint is written, then loaded in four ways."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from case import Case, Description, Tell, digest, model_tensors, weight_bytes

import dormant
from dormant.cli.main import main as command

SEED = 0
TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BILLION = {
    **TINY,
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
_PROMPT = (1, 15, 278, 1999, 338, 29871, 7, 3)


def _config(folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(folder)


def _quantization(scheme: str) -> Any:
    if scheme == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _write(folder: Path, tell: Tell) -> None:
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(_config(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def _stream(folder: Path, tell: Tell) -> None:
    # The command `dormant init FOLDER FOLDER --seed 0 --dtype bfloat16 --force` does the same.
    options = ["--seed", str(SEED), "--dtype", "bfloat16", "--force"]
    status = command(["init", str(folder), str(folder), *options], progress=tell)
    if status != 0:
        raise RuntimeError(f"dormant init ended with {status}")


def _ordinary(folder: Path, tell: Tell, *, dtype: torch.dtype) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def _dormant(folder: Path, tell: Tell, *, dtype: torch.dtype) -> Any:
    with dormant.lazy_init(dtype=dtype):
        model = transformers.LlamaForCausalLM(_config(folder))
    dormant.load(model, folder, missing="error", progress=tell)
    return model


def _ordinary_quantized(folder: Path, tell: Tell, *, scheme: str) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(
        folder, quantization_config=_quantization(scheme), dtype=torch.bfloat16
    )


def _dormant_quantized(folder: Path, tell: Tell, *, scheme: str) -> Any:
    with dormant.lazy_init(dtype=torch.bfloat16):
        model = transformers.LlamaForCausalLM(_config(folder))
    dormant.quantize(model, _quantization(scheme))
    dormant.load(model, folder, missing="error", progress=tell)
    return model


def _describe(model: Any, folder: Path) -> Description:
    vocabulary = model.config.vocab_size
    prompt = torch.tensor([[token % vocabulary for token in _PROMPT]])
    with torch.no_grad():
        logits = model.eval()(prompt).logits
    return Description(
        nbytes=weight_bytes(model),
        digests={name: digest(tensor) for name, tensor in model_tensors(model).items()},
        outputs=digest(logits),
    )


def _describe_files(_written: None, folder: Path) -> Description:
    from safetensors import safe_open

    digests, nbytes = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                tensor = file.get_tensor(name)
                digests[name] = digest(tensor)
                nbytes += tensor.nbytes
    return Description(nbytes=nbytes, digests=digests)


def _loading(title: str, dtype: torch.dtype) -> Case:
    return Case(
        title, partial(_ordinary, dtype=dtype), partial(_dormant, dtype=dtype), TINY, _describe
    )


def _quantizing(title: str, scheme: str) -> Case:
    return Case(
        title,
        partial(_ordinary_quantized, scheme=scheme),
        partial(_dormant_quantized, scheme=scheme),
        TINY,
        _describe,
    )


CASES = {
    "llama-write": Case(
        "Llama, random, to files", _write, _stream, TINY, _describe_files, writes=True
    ),
    "llama-bfloat16": _loading("Llama, as stored (bfloat16)", torch.bfloat16),
    "llama-float32": _loading("Llama, cast to float32", torch.float32),
    "llama-nf4": _quantizing("Llama to nf4", "nf4"),
    "llama-int8": _quantizing("Llama to int8", "int8"),
}
