"""The code of docs/integrations.md runs, with the files that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dormant
from compare import assert_same_bits
from pages import blocks


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
