from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from command import Cli

import dormant


def test_bytes_are_those_of_real_models(cli: Cli, llama: Path) -> None:
    run = cli("summary", llama, "--json")
    assert run.code == 0, run.err
    data = run.json
    config = transformers.AutoConfig.from_pretrained(llama)
    model = transformers.LlamaForCausalLM(config)
    parameters = list(model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert data["model"] == "LlamaForCausalLM"
    assert data["parameters"] == sum(parameter.numel() for parameter in parameters)
    assert data["tensors"] == len(parameters)
    whole = sum(parameter.nbytes for parameter in parameters)
    assert data["forms"]["float32"]["nbytes"] == whole + buffers
    assert data["forms"]["bfloat16"]["nbytes"] == whole // 2 + buffers
    assert data["forms"]["float32"]["ranks"] == {
        str(ranks): -(-whole // ranks) + buffers for ranks in (2, 4, 8)
    }
    for scheme in ("int8", "nf4"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        report = dormant.quantize(model, scheme)
        expected = sum(layer.nbytes or 0 for layer in report.layers) + buffers
        expected += sum(
            parameter.nbytes
            for name, parameter in model.named_parameters()
            if name.removesuffix(".weight") not in {layer.name for layer in report.layers}
        )
        form = data["forms"][scheme]
        assert form["nbytes"] == expected
        assert form["quantized"] == report.share
        assert form["ranks"]["8"] > form["nbytes"] // 8


def test_the_table(cli: Cli, llama: Path) -> None:
    run = cli("summary", llama / "config.json", "--ranks", "1", "64")
    assert run.code == 0, run.err
    first, header, *_ = [line for line in run.out.splitlines() if line.strip()]
    assert first.startswith("LlamaForCausalLM: ")
    assert header.split() == ["whole", "1", "rank", "64", "ranks"]
    assert all(form in run.out for form in ("float32", "bfloat16", "int8", "nf4"))
    assert max(map(len, run.out.splitlines())) <= 80


def test_models_of_code_and_without_linear_layers(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_norms.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.BatchNorm1d(7)\n"
    )
    run = cli("summary", "only_norms:build", "--json")
    sys.modules.pop("only_norms", None)
    assert run.code == 0
    assert run.json["parameters"] == 14
    assert run.json["forms"]["float32"]["nbytes"] == 4 * 14 + 2 * 4 * 7 + 8
    assert set(run.json["skipped"]) == {"int8", "nf4"}
    assert cli("summary", "nope").code == 2
    assert cli("summary", "only_norms:absent").code == 2
