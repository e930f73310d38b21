"""What `dormant init` writes is what eager construction gives under the same seed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from command import Cli

from compare import assert_same_bits
from dormant.cli.main import main

CODE = """
import torch


def build():
    return torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))


def number():
    return 7
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module `random_model`."""
    (tmp_path / "random_model.py").write_text(CODE)
    (tmp_path / "list.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_of_a_configuration_are_those_of_eager_construction(
    cli: Cli, tmp_path: Path, llama: Path, dtype: str | None
) -> None:
    out = tmp_path / "out"
    arguments = [] if dtype is None else ["--dtype", dtype]
    run = cli("init", llama / "config.json", out, "--seed", "5", "--json", *arguments)
    assert run.code == 0
    config = transformers.AutoConfig.from_pretrained(llama)
    torch.manual_seed(5)
    eager = transformers.AutoModelForCausalLM.from_config(
        config, **({} if dtype is None else {"dtype": getattr(torch, dtype)})
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert type(loaded) is transformers.LlamaForCausalLM
    assert run.json["elements"] == sum(parameter.numel() for parameter in eager.parameters())
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, loaded.state_dict()[name], name)


@pytest.mark.parametrize(
    "config",
    [
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            architectures=["BertForMaskedLM"],
        ),
        transformers.MixtralConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_local_experts=2,
            architectures=["MixtralForCausalLM"],
        ),
    ],
    ids=["tied", "converted names"],
)
def test_names_in_the_file_are_those_of_save_pretrained(
    cli: Cli, tmp_path: Path, config: transformers.PretrainedConfig
) -> None:
    config.save_pretrained(tmp_path / "config")
    assert cli("init", tmp_path / "config", tmp_path / "out").code == 0
    torch.manual_seed(0)
    eager = getattr(transformers, config.architectures[0])(config)
    eager.save_pretrained(tmp_path / "eager")
    expected = safetensors.torch.load_file(tmp_path / "eager" / "model.safetensors")
    got = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)


def test_weights_of_a_function_are_those_of_calling_it(cli: Cli, code: Path) -> None:
    assert cli("init", "random_model:build", "out.safetensors", "--seed", "3").code == 0
    torch.manual_seed(3)
    eager = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    got = safetensors.torch.load_file(code / "out.safetensors")
    assert got.keys() == eager.state_dict().keys()
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, got[name], name)


@pytest.mark.parametrize(
    ("model", "code_expected", "message"),
    [
        ("absent_module:build", 2, "no module named 'absent_module'"),
        ("random_model:absent", 2, "no function 'absent'"),
        ("random_model:number", 1, "returned int, expected a torch.nn.Module"),
        ("nothing", 2, "no such file or folder: 'nothing'"),
        (".", 1, "no config.json"),
        ("random_model.py", 1, "is not JSON"),
        ("list.json", 1, "contains a list"),
        ("", 2, "no such file or folder: ''"),
    ],
)
def test_what_is_no_model_is_said_to_be_none(
    cli: Cli, code: Path, model: str, code_expected: int, message: str
) -> None:
    run = cli("init", model, "out")
    assert (run.code, message in run.err) == (code_expected, True), run.err
    assert not (code / "out").exists()


def test_progress_and_budget_are_those_of_writing(code: Path) -> None:
    steps: list[tuple[int, int]] = []
    arguments = ["init", "random_model:build", "out.safetensors", "--memory-budget", "1MiB"]
    assert main(arguments, progress=lambda *step: steps.append(step)) == 0
    written = (code / "out.safetensors").stat().st_size
    assert steps[0][0] == 0
    assert 0 < steps[-1][0] == steps[-1][1] < written
    arguments[-1] = "0.1KB"
    assert main([*arguments, "--force"]) == 1


def test_code_that_ends_the_program_is_a_failure(cli: Cli, code: Path) -> None:
    (code / "script_model.py").write_text("import sys\n\nprint('hello')\nsys.exit(5)\n")
    run = cli("init", "script_model:build", "out", "--json")
    assert run.code == 3
    assert "sys.exit(5)" in run.json["error"]["message"]
    assert "hello" in run.err
    assert not (code / "out").exists()


@pytest.mark.parametrize("out", ["folder", "file.safetensors"])
@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (signal.SIGINT, "KeyboardInterrupt", "interrupted"),
        (signal.SIGTERM, "Terminated", "terminated"),
        (signal.SIGHUP, "Terminated", "terminated"),
    ],
)
def test_a_signal_to_end_leaves_nothing(
    code: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    number: int,
    kind: str,
    message: str,
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]

    def interrupt(done: int, total: int) -> None:
        assert any(code.rglob("*.tmp"))
        os.kill(os.getpid(), number)

    exit_code = main(["init", "random_model:build", out, "--json"], progress=interrupt)
    captured = capsys.readouterr()
    assert exit_code == 128 + number
    assert json.loads(captured.out)["error"] == {"type": kind, "message": message}
    assert message in captured.err
    assert {path.name for path in code.iterdir()} - {"__pycache__"} == {
        "random_model.py",
        "list.json",
    }
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == handlers
