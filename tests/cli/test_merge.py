from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from command import Cli

import dormant
from compare import assert_same_bits

ADAPTERS: dict[str, Any] = {
    "LoRA": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rank patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"q_proj": 3},
    },
    "rsLoRA": {"target_modules": ["q_proj"], "use_rslora": True},
    "DoRA": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "whole modules": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.fixture
def base(tmp_path: Path, llama: Path, request: pytest.FixtureRequest) -> Path:
    """The Llama, in the dtype that the test asks for."""
    folder = tmp_path / "base"
    dtype = getattr(torch, getattr(request, "param", "float32"))
    transformers.LlamaForCausalLM.from_pretrained(llama, dtype=dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def adapter_of(base: Path, folder: Path, **options: Any) -> Path:
    """A trained adapter: none of its tensors is zero."""
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype="auto")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **options))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype="auto")
    state: dict[str, torch.Tensor] = (
        peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    )
    return state


@pytest.mark.parametrize("base", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_result_is_that_of_peft(cli: Cli, tmp_path: Path, base: Path, kind: str) -> None:
    adapter = adapter_of(base, tmp_path / "adapter", **ADAPTERS[kind])
    expected = merged_by_peft(base, adapter)
    run = cli("merge", base, adapter, tmp_path / "out", "--json")
    assert run.code == 0, run.err
    assert run.json["adapter"] == "LORA"
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert_same_bits(expected[name], tensor, name)
    assert "tokenizer.json" in run.json["copied"]
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == next(iter(expected.values())).dtype


def test_a_dtype_and_a_file_as_base(cli: Cli, tmp_path: Path, base: Path) -> None:
    adapter = adapter_of(base, tmp_path / "adapter", **ADAPTERS["LoRA"])
    run = cli("merge", base / "model.safetensors", adapter, tmp_path / "out")
    assert run.code == 2
    assert "Pass --config" in run.err
    arguments = ("merge", base / "model.safetensors", adapter, tmp_path / "out")
    assert cli(*arguments, "--config", base, "--dtype", "bfloat16").code == 0
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    expected = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    for name, tensor in safetensors.torch.load_file(tmp_path / "out/model.safetensors").items():
        assert_same_bits(expected[name], tensor, name)


def test_a_packed_base_is_decoded(cli: Cli, tmp_path: Path, base: Path) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    assert cli("convert", base, packed, "--quantize", "nf4").code == 0
    assert cli("convert", packed, plain).code == 0
    adapter = adapter_of(base, tmp_path / "adapter", **ADAPTERS["LoRA"])
    expected = merged_by_peft(plain, adapter)
    run = cli("merge", packed, adapter, tmp_path / "out")
    assert run.code == 0, run.err
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert_same_bits(expected[name], tensor, name)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert getattr(config, "quantization_config", None) is None


def test_errors_leave_nothing(cli: Cli, tmp_path: Path, base: Path) -> None:
    adapter = adapter_of(base, tmp_path / "adapter", **ADAPTERS["LoRA"])
    out = tmp_path / "out"
    assert cli("merge", base, tmp_path / "nope", out).code == 3
    assert cli("merge", tmp_path / "nope", adapter, out).code != 0
    assert cli("merge", base, adapter, base).code == 2
    other = shutil.copytree(adapter, tmp_path / "other")
    tensors = safetensors.torch.load_file(other / "adapter_model.safetensors")
    name = next(iter(tensors))
    safetensors.torch.save_file(
        {**tensors, name: torch.zeros(3, 3)}, other / "adapter_model.safetensors"
    )
    assert cli("merge", base, other, out).code != 0
    assert not out.exists()


def test_weights_are_computed_when_they_are_written(
    cli: Cli, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(base, tmp_path / "adapter", **ADAPTERS["LoRA"])
    lazy: list[bool] = []

    def save(model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        lazy.extend(dormant.is_lazy(parameter) for parameter in model.parameters())
        return dormant.save(model, *args, **options)

    monkeypatch.setattr("dormant.cli.merge.save", save)
    assert cli("merge", base, adapter, tmp_path / "out").code == 0
    assert lazy
    assert all(lazy)
