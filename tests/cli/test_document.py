"""The commands of docs/command_line.md run, and its tables are complete."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from command import Cli

import dormant.cli.bench
from compare import assert_same_bits
from dormant.cli.outcome import FAILED, INTERRUPTED, NOT_OK, OK, SIGNALLED, USAGE
from pages import blocks

DOCUMENT = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in blocks("command_line.md", "sh")
    for line in block.code.replace("\\\n", "").splitlines()
]
KEYS = {
    name: set(re.findall(r"`(\w+)`", row))
    for name, row in re.findall(
        r"^\| (\w+) \| (.*?) \|$", DOCUMENT.split("## JSON")[1], re.MULTILINE
    )
}


@pytest.fixture
def folder(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama, "llama")
    model = {"layer.weight": torch.randn(2, 3), "layer.bias": torch.randn(2)}
    torch.save({"model": model, "step": 3}, "training.pt")
    weights = safetensors.torch.load_file("llama/model.safetensors")
    torch.save({"model": {f"module.{name}": weights[name] for name in weights}}, "finetuned.pt")
    parts = tmp_path / "parts"
    parts.mkdir()
    for rank in range(2):
        torch.save({"wq.weight": torch.full((3, 2), rank)}, parts / f"consolidated.{rank:02}.pth")
    adapted = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained("llama"),
        peft.LoraConfig(r=2, target_modules=["q_proj"]),
    )
    adapted.save_pretrained("adapter")
    (tmp_path / "train.py").write_text(
        "import torch\n\n\ndef build_model():\n    return torch.nn.Linear(3, 2)\n"
    )
    return tmp_path


def test_the_commands(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its processes are tested elsewhere; each would import torch.
    monkeypatch.setattr(
        dormant.cli.bench, "_in_new_process", lambda function, argument: function(argument)
    )
    assert {command[1] for command in COMMANDS} == set(KEYS) - {"all", "command", "failed"}
    for program, *arguments in COMMANDS:
        assert program == "dormant"
        run = cli(*arguments, "--json")
        assert run.code == 0, (arguments, run.err)
        printed = set(run.json)
        assert {"command", "ok"} <= printed
        assert printed - {"command", "ok"} <= KEYS[arguments[0]]

    tree = cli("inspect", "llama").out
    shown = re.search(r"^    module.*?^          \.\.\.$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert shown is not None
    rows = [" ".join(line.split()) for line in shown.group().splitlines()[2:-1]]
    assert len(rows) == 6
    printed_rows = [" ".join(line.split()) for line in tree.splitlines()]
    assert all(row in printed_rows for row in rows)

    # In the page's order: one checkpoint cast, merged, divided and renamed.
    assert json.loads((folder / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    merged = safetensors.torch.load_file("whole.safetensors")["wq.weight"]
    expected = torch.tensor([0, 1]).repeat_interleave(3)[:, None].expand(6, 2).contiguous()
    assert_same_bits(expected, merged)
    third = torch.load(folder / "three" / "consolidated.02.pth", weights_only=True)
    assert_same_bits(torch.ones(2, 2, dtype=torch.int64), third["wq.weight"])
    renamed = torch.load("renamed.pt", weights_only=True)
    assert sorted(renamed) == ["block.shift", "block.weight"]


def test_the_table_of_exit_codes_is_complete() -> None:
    table = DOCUMENT.split("## Exit codes")[1].split("##")[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert codes == [OK, NOT_OK, USAGE, FAILED, INTERRUPTED, SIGNALLED + signal.SIGTERM]
