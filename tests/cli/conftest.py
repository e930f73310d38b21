"""`cli(...)` runs the command in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from dormant.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))

from command import Cli, Run

LLAMA = transformers.LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=96,
)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it. Tests do not write to it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(LLAMA).save_pretrained(folder)
    return folder
