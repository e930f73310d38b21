"""Models from GGUF files: names and values of transformers' `from_pretrained(gguf_file=...)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

import dormant
from gguf_models import CASES, Case, model_class, write_model

KNOWN = {str(case): case for case in CASES}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def theirs(case: Case, path: Path, **options: Any) -> torch.nn.Module:
    kind = getattr(transformers, case.model)
    model: torch.nn.Module = kind.from_pretrained(path.parent, gguf_file=path.name, **options)
    return model


def lazy(case: Case, path: Path) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with dormant.lazy_init():
        model: torch.nn.Module = model_class(case)(config)
    return model


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    wrong = [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])]
    assert not wrong


@pytest.mark.parametrize("case", CASES, ids=[f"{place}-{case}" for place, case in enumerate(CASES)])
def test_a_model_gets_the_tensors_that_transformers_gives_it(case: Case, tmp_path: Path) -> None:
    path = write_model(case, tmp_path)
    model = lazy(case, path)
    converted = dormant.open_checkpoint(path).for_model(model)
    assert set(converted) <= set(model.state_dict())
    dormant.load(model, path, missing="error")
    assert_equal(theirs(case, path), model)


@pytest.mark.parametrize("name", ["llama", "qwen2moe", "gemma2", "qwen3", "gpt2", "mamba"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16", "F16"])
def test_models_in_blocks_get_the_same(name: str, kind: str, tmp_path: Path) -> None:
    case = KNOWN[name]
    path = write_model(case, tmp_path, gguf.GGMLQuantizationType[kind])
    for dtype in (torch.float32, torch.bfloat16):
        model = lazy(case, path).to(dtype)
        dormant.load(model, path)
        assert_equal(theirs(case, path, dtype=dtype), model)


def test_converted_tensors_are_lazy_and_made_alone(tmp_path: Path) -> None:
    case = KNOWN["qwen2moe"]
    path = write_model(case, tmp_path, gguf.GGMLQuantizationType.Q8_0)
    converted = dormant.open_checkpoint(path).for_model(lazy(case, path))
    stack = converted["model.layers.0.mlp.experts.gate_up_proj"]
    assert dormant.is_lazy(stack)
    assert len(converted.entries["model.layers.0.mlp.experts.gate_up_proj"].parts) == 2
    expert = stack[2].clone()
    dormant.materialize(expert)
    assert dormant.is_lazy(stack)
    assert torch.equal(expert, theirs(case, path).model.layers[0].mlp.experts.gate_up_proj[2])


def test_frequencies_that_the_model_computes_are_left_out(tmp_path: Path) -> None:
    case = KNOWN["llama"]
    path = write_model(case, tmp_path)
    checkpoint = dormant.open_checkpoint(path)
    model = lazy(case, path)
    more = gguf.GGUFWriter(tmp_path / "more.gguf", "llama")
    reader = gguf.GGUFReader(path)
    for field in reader.fields.values():
        if field.name.startswith("llama.") and field.types[0] == gguf.GGUFValueType.UINT32:
            more.add_uint32(field.name, int(field.parts[-1][0]))
    for name in checkpoint:
        more.add_tensor(name, checkpoint[name].numpy())
    more.add_tensor("rope_freqs.weight", torch.ones(8).numpy())
    more.write_header_to_file()
    more.write_kv_data_to_file()
    more.write_tensors_to_file()
    more.close()
    dormant.load(model, tmp_path / "more.gguf", missing="error")
    assert_equal(theirs(case, path), model)


def test_an_architecture_without_tables_is_named(tmp_path: Path) -> None:
    case = KNOWN["llama"]
    path = write_model(case, tmp_path)
    model = lazy(case, path)
    data = path.read_bytes().replace(b"llama", b"lemma")
    path.write_bytes(data)
    model.config.model_type = "lemma"
    with pytest.raises(NotImplementedError, match="architecture 'lemma'"):
        dormant.load(model, path)
    assert dormant.is_lazy(next(model.parameters()))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write_model(KNOWN["gpt2"], tmp_path)
    (tmp_path / "llama").mkdir()
    other = lazy(KNOWN["llama"], write_model(KNOWN["llama"], tmp_path / "llama"))
    with pytest.raises(KeyError, match="not in the model"):
        dormant.load(other, path)
    assert dormant.is_lazy(next(other.parameters()))
