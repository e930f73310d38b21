"""Some of the architectures that `pretrained_values.py` judges; run it for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from libraries import models
from pretrained_values import judge

ROWS = {row.name: row for row in models("transformers")}

# The library gives wrong values for these: parameters without a rule, and one that is overwritten.
WRONG_IN_THE_LIBRARY = (
    "CLIPModel",
    "ChineseCLIPModel",
    "OpenAIGPTLMHeadModel",
    "RegNetModel",
    "Wav2Vec2ForCTC",
    "EncodecModel",
)
RIGHT_IN_THE_LIBRARY = (
    "LlamaForCausalLM",
    "LlamaForCausalLM-tied-llama3-rope",
    "MixtralForCausalLM",
    "MambaForCausalLM",
    "T5ForConditionalGeneration",
    "SwinModel",
)


@pytest.mark.parametrize("name", WRONG_IN_THE_LIBRARY + RIGHT_IN_THE_LIBRARY)
def test_every_value_is_that_of_eager_construction_or_of_the_file(
    name: str, tmp_path: Path
) -> None:
    verdict = judge(ROWS[name], tmp_path)
    assert verdict.checkpoints >= 4
    assert verdict.tensors > 40
    assert not verdict.wrong.keys() - {"library"}, verdict.wrong
    if os.environ.get("MALLOC_PERTURB_"):  # else unwritten memory may be right by chance
        assert bool(verdict.wrong) == (name in WRONG_IN_THE_LIBRARY), verdict.wrong
