"""The commands of docs/command_line.md run, and its tables are complete."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command import Cli

import dormant.cli.bench
from compare import assert_same_bits
from dormant_command.outcome import FAILED, INTERRUPTED, NOT_OK, OK, SIGNALLED, USAGE
from pages import Block, blocks

DOCUMENT = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
BLOCKS = blocks("command_line.md", "sh")
# Commands whose output the page shows; they change nothing, so they may run twice.
READERS = {"inspect", "diff", "summary"}
KEYS = {
    name: set(re.findall(r"`(\w+)`", row))
    for name, row in re.findall(
        r"^\| (\w+) \| (.*?) \|$", DOCUMENT.split("## JSON")[1], re.MULTILINE
    )
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for block in blocks("command_line.md"):
        if block.file:
            Path(block.file).write_text(block.code)
        else:
            block.run({})
    return tmp_path


def commands_of(block: Block) -> list[list[str]]:
    lines = block.code.replace("\\\n", "").splitlines()
    commands = [shlex.split(line) for line in lines]
    assert all(program == "dormant" for program, *_ in commands)
    return [arguments for _, *arguments in commands]


def test_the_commands(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its processes are tested elsewhere; each would import torch.
    monkeypatch.setattr(
        dormant.cli.bench, "_in_new_process", lambda function, argument: function(argument)
    )
    used: set[str] = set()
    for block in BLOCKS:
        commands = commands_of(block)
        names = {arguments[0] for arguments in commands}
        for arguments in commands:
            run = cli(*arguments, "--json")
            assert run.code == 0, (arguments, run.err)
            printed = set(run.json)
            assert {"command", "ok"} <= printed
            assert printed - {"command", "ok"} <= KEYS[arguments[0]]
        if names <= READERS:
            block.check_output("".join(cli(*arguments).out for arguments in commands))
        used |= names
    assert used == set(KEYS) - {"all", "command", "failed"}

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
