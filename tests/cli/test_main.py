"""Exit codes, messages and `--json` of the command as a whole."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import Cli

import dormant
from dormant.cli.main import main

COMMANDS = ("inspect", "verify", "diff", "convert", "merge", "init", "summary", "bench")

PYTHON = shlex.quote(sys.executable)


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in COMMANDS)
    assert "exit codes:" in text
    assert "130" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"dormant {command}" in text.split("examples:")[1]
    assert "--json" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["absent"],
        ["inspect"],
        ["convert", "one"],
        ["convert", "in", "out", "--dtype", "int8"],
        ["convert", "in", "out", "--max-shard-size", "0GB"],
        ["convert", "in", "out", "--parts", "0"],
        ["convert", "in", "out", "--memory-budget", "much"],
        ["inspect", "in", "--absent"],
        ["init", "m:f", "out", "--seed", "-1"],
        ["init", "m:f", "out", "--dtype", "float8_e5m2"],
    ],
)
def test_wrong_arguments_are_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    run = cli(*arguments)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("usage: dormant")
    run = cli(*arguments, "--json")
    assert run.code == 2
    assert run.json["ok"] is False
    assert run.json["error"]["type"] == "UsageError"
    assert run.json["error"]["message"] in run.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "{in}", "out", "--quantize", "nf4"],
        ["convert", "{in}", "out.pt", "--parts", "2"],
        ["convert", "{in}", "out", "--quantize", "nf4", "--config", ".", "--parts", "2"],
        ["convert", "{in}", "out.pt", "--quantize", "nf4", "--config", "."],
        ["convert", "{in}", "out", "--config", "."],
        ["convert", "{in}", ""],
        ["convert", "{in}", "{in}/below/out.pt"],
        ["bench", "absent"],
    ],
)
def test_arguments_that_cannot_be_used_together_are_exit_code_2(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2)}, "in.pt")
    assert cli(*[argument.replace("{in}", "in.pt") for argument in arguments]).code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_an_error_is_one_block_and_a_json_object(cli: Cli, tmp_path: Path) -> None:
    run = cli("inspect", tmp_path / "absent")
    assert (run.code, run.out) == (3, "")
    assert run.err.startswith("dormant inspect: no such file or folder: ")
    assert "Traceback" not in run.err
    run = cli("inspect", tmp_path / "absent", "--json")
    assert run.json["command"] == "inspect"
    assert run.json["ok"] is False
    assert run.json["error"]["type"] == "FileNotFoundError"
    assert run.json["error"]["errno"] == 2


def test_debug_shows_where(cli: Cli, tmp_path: Path) -> None:
    run = cli("inspect", tmp_path / "absent", "--debug")
    assert run.code == 3
    assert "Traceback" in run.err
    assert "find_groups" in run.err


def test_an_error_of_names_prints_as_it_is(cli: Cli, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "m.pt")
    run = cli("inspect", tmp_path / "m.pt", "--key", "absent")
    assert run.code == 1
    assert "absent" in run.err
    assert "\\n" not in run.err


def test_python_m_is_the_command_and_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    # More than a pipe holds, to a reader that takes one line.
    state = {f"layer{i}.weight": torch.zeros(i + 1) for i in range(3000)}
    torch.save(state, tmp_path / "m.pt")
    command = f"{PYTHON} -m dormant inspect m.pt | head -n 1; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, code = ran.stdout.splitlines()
    assert (Path(first).name, code, ran.stderr) == ("m.pt", "0", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(("where", "expected"), [("> /dev/full", 3), (">&- 2>&-", 0)])
def test_a_result_that_cannot_be_printed(tmp_path: Path, where: str, expected: int) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pt")
    command = f"{PYTHON} -m dormant convert m.pt out.pt --force {where}"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == expected, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr
    assert ("cannot print the result: No space left" in ran.stderr) == (expected == 3)


def test_names_and_lines_beyond_the_terminal_s_encoding_are_replaced(tmp_path: Path) -> None:
    torch.save({"größe": torch.zeros(1)}, tmp_path / "m.pt")
    ran = subprocess.run(
        [sys.executable, "-m", "dormant", "inspect", "m.pt"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gr??e" in ran.stdout


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dormant {dormant.__version__}\n"
