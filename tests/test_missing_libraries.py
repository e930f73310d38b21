"""Dormant where nothing but torch is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

OTHERS = (
    "numpy", "rich", "transformers", "safetensors", "huggingface_hub", "bitsandbytes", "matplotlib",
    "torchao", "peft", "accelerate", "diffusers", "timm", "torchvision", "tqdm", "yaml",
    "packaging",
)  # fmt: skip
WITHOUT = f"""
import sys, warnings
for name in {OTHERS!r}:
    sys.modules[name] = None  # importing it is a ModuleNotFoundError
warnings.filterwarnings("ignore", "Failed to initialize NumPy")
import torch, dormant

def build(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30))

def lazy(seed=0):
    with dormant.lazy_init():
        return build(seed)

def assert_equal(model, other):
    states = model.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
"""
WORKS = {
    "materialize": """
model = lazy()
dormant.materialize(model, progress=True)
assert_equal(model, build())
""",
    "summary": """
summary = dormant.summary(lazy())
assert [tensor.shape for tensor in summary.tensors][:2] == [(30, 20), (30,)]
assert "<table>" in summary._repr_html_()
""",
    "save and load": """
dormant.save(lazy(), "saved")
model = lazy(seed=1)
dormant.load(model, "saved", progress=True)
assert_equal(model, build())
""",
    "torch.load": """
torch.save(build().state_dict(), "model.pt")
model = lazy(seed=1)
with dormant.lazy_init():
    model.load_state_dict(torch.load("model.pt"))
dormant.materialize(model)
assert_equal(model, build())
""",
    "recipe with captured tensors": """
import pickle
for captured in (torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t(), torch.empty(0, 2)):
    with dormant.lazy_init():
        lazy = torch.zeros(2) + captured
    with dormant.recipes.pickling():
        pickled = pickle.dumps(lazy)
    copied = pickle.loads(pickled)
    assert dormant.is_lazy(copied)
    assert torch.equal(copied, captured)
""",
    "progress": """
from dormant.reporting import progress
progress._PATIENCE = -1.0
with progress.following(True, "loading") as tell:
    tell(1, 2)
    tell(2, 2)
""",
    "hashes": """
import contextlib, hashlib, io, json
from dormant.cli.main import main
del sys.modules["rich"]  # which the command requires
torch.save({"some": torch.arange(5, dtype=torch.int16), "none": torch.empty(0)}, "model.pt")
with contextlib.redirect_stdout(io.StringIO()) as printed:
    assert main(["inspect", "model.pt", "--hash", "--json"]) == 0
hashes = {tensor["name"]: tensor["sha256"] for tensor in json.loads(printed.getvalue())["tensors"]}
assert hashes == {
    "some": hashlib.sha256(bytes.fromhex("00000100020003000400")).hexdigest(),
    "none": hashlib.sha256().hexdigest(),
}
""",
}


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + program],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("program", WORKS.values(), ids=WORKS)
def test_works_without_any_other_library(program: str, tmp_path: Path) -> None:
    ran = run(program, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("program", "needed"),
    [
        ("print(dormant.summary(lazy()))", "pip install 'rich>=13'"),
        ("print(dormant.materialize(lazy()))", "pip install 'rich>=13'"),
        ("dormant.materialize(lazy()).plot('plot.png')", "pip install 'dormant[plots]'"),
        ("dormant.quantize(lazy(), 'nf4')", "pip install 'bitsandbytes>=0.50'"),
    ],
    ids=["summary", "report", "plot", "quantize"],
)
def test_what_needs_a_library_says_which(program: str, needed: str, tmp_path: Path) -> None:
    ran = run(f"try:\n    {program}\nexcept ImportError as error:\n    print(error)", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert needed in ran.stdout


def test_the_command_says_which(tmp_path: Path) -> None:
    program = """
from dormant.cli.main import main
dormant.save(build(), "saved")
sys.exit(main(["inspect", "saved"]))
"""
    ran = run(program, tmp_path)
    assert ran.returncode != 0
    assert ran.stderr.startswith("dormant inspect: printing a table needs rich")
    assert "pip install 'rich>=13'" in ran.stderr
    assert ran.stderr.count("\n") == 1
