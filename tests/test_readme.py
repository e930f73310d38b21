"""The example at the top of README.md runs, and does what its comments say."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import dormant
from compare import assert_same_bits

README = Path(__file__).resolve().parent.parent / "README.md"


def test_first_example_gives_the_eager_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The default configuration is the one of 7 billion parameters.
    small = functools.partial(
        transformers.LlamaConfig,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1000,
    )
    monkeypatch.setattr(transformers, "LlamaConfig", small)
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    assert "model.embed_tokens.weight" in capsys.readouterr().out

    torch.manual_seed(0)
    eager = transformers.LlamaForCausalLM(small()).to(torch.bfloat16)
    state = names["model"].state_dict()
    assert not dormant.is_lazy(names["model"])
    assert names["report"].lazy_rate == 1.0
    for name, expected in eager.state_dict().items():
        assert_same_bits(state[name], expected, name)
