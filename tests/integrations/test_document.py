"""The code of docs/integrations.md runs in a folder with the files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from libraries import models

import dormant
from compare import assert_same_bits
from pages import blocks


def write_files() -> None:
    torch.manual_seed(1)
    rows = {row.name: row for name in ("transformers", "diffusers") for row in models(name)}
    saved: dict[str, Any] = {"llama": "LlamaForCausalLM", "pipeline/vae": "AutoencoderKL"}
    for folder, name in saved.items():
        model: Any = rows[name].build()
        model.save_pretrained(folder)
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "squeezenet.pth")
    for folder, kind in (("base", "model"), ("finetuned", "model-diff")):
        Path(folder).mkdir()
        state = {"llma.weight": torch.full((4, 4), 0.5), "llma.bias": torch.ones(4)}
        torch.save(state, Path(folder, f"consolidated.00-of-01.{kind}.pth"))


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files()
    names: dict[str, Any] = {}
    for block in blocks("integrations.md"):
        block.run(names)
        model = names.get("model")
        assert model is None or not dormant.is_lazy(model)
    assert names["missing"] == []
    assert_same_bits(torch.ones(4, 4, dtype=torch.bfloat16), names["model"]["llma"].weight, "sum")
    assert names["report"].count("checkpoint") >= 19
    assert names["fresh"].training
    assert names["packed"].is_quantized
    assert not names["vae"].training
