from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command import Cli

NAN = float("nan")


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    return path


def test_formats_and_folders_with_equal_tensors(cli: Cli, tmp_path: Path, llama: Path) -> None:
    weights = safetensors.torch.load_file(llama / "model.safetensors")
    torch.save(weights, tmp_path / "model.pt")
    run = cli("diff", llama, tmp_path / "model.pt")
    assert run.code == 0
    assert run.out.strip() == f"{len(weights)} tensors (bits): {len(weights)} equal"
    data = cli("diff", llama, tmp_path / "model.pt", "--json").json
    assert data["ok"] is data["equal"] is True
    assert data["totals"] == {
        "equal": len(weights),
        "different": 0,
        "only_in_a": 0,
        "only_in_b": 0,
    }


def test_every_difference_is_found(cli: Cli, tmp_path: Path) -> None:
    a = {
        "same": torch.tensor([1.0, NAN, -0.0]),
        "values": torch.arange(6.0).view(2, 3),
        "sign of zero": torch.tensor([0.0, 1.0]),
        "not a number": torch.tensor([1.0, NAN]),
        "infinite": torch.tensor([float("inf"), 2.0]),
        "dtype, same values": torch.tensor([1.0, 2.0]),
        "dtype, other values": torch.tensor([1.0, 1.001]),
        "shape": torch.zeros(2, 3),
        "whole": torch.tensor([5, -7]),
        "flag": torch.tensor([True, False]),
        "gone": torch.zeros(1),
    }
    b = {name: tensor.clone() for name, tensor in a.items() if name != "gone"}
    b["values"][1, 1] += 0.5
    b["values"][0, 0] -= 0.25
    b["sign of zero"] = torch.tensor([-0.0, 1.0])
    b["not a number"] = torch.tensor([1.0, 3.0])
    b["infinite"] = torch.tensor([float("inf"), float("-inf")])
    b["dtype, same values"] = b["dtype, same values"].bfloat16()
    b["dtype, other values"] = b["dtype, other values"].bfloat16()
    b["shape"] = torch.zeros(3, 2)
    b["whole"][1] = 7
    b["flag"][0] = False
    b["new"] = torch.zeros(4)
    run = cli("diff", save(tmp_path / "a.safetensors", a), save(tmp_path / "b.pt", b), "--json")
    assert run.code == 1
    found = {each["name"]: each for each in run.json["tensors"]}
    assert {name: each["status"] for name, each in found.items()} == {
        **dict.fromkeys(a, "different"),
        "same": "equal",
        "gone": "only in A",
        "new": "only in B",
    }
    compared = {
        name: (each["differing"], each["largest"]) for name, each in found.items() if name in b
    }
    assert compared == {
        "same": (0, 0.0),
        "values": (2, 0.5),
        "sign of zero": (1, 0.0),
        "not a number": (1, "nan"),
        "infinite": (1, "inf"),
        "dtype, same values": (0, 0.0),
        "dtype, other values": (1, pytest.approx(0.001, rel=1e-3)),
        "shape": (None, None),
        "whole": (1, 14.0),
        "flag": (1, 1.0),
        "new": (None, None),
    }
    text = cli("diff", tmp_path / "a.safetensors", tmp_path / "b.pt").out
    assert "12 tensors (bits): 1 equal, 9 different, 1 only in A, 1 only in B" in text
    assert "2 x 3 / 3 x 2" in text
    assert "float32 / bfloat16" in text
    assert "same " not in text.splitlines()[0]


def test_tensors_of_several_pieces(cli: Cli, tmp_path: Path) -> None:
    a = torch.zeros((5 << 20) + 3, dtype=torch.bfloat16)
    b = a.clone()
    b[-1], b[0] = 2, -4
    paths = [save(tmp_path / f"{i}.pt", {"t": tensor}) for i, tensor in enumerate((a, b))]
    (only,) = cli("diff", *paths, "--json").json["tensors"]
    assert (only["differing"], only["largest"]) == (2, 4.0)


def test_names_only(cli: Cli, tmp_path: Path) -> None:
    a = save(tmp_path / "a.pt", {"t": torch.zeros(3), "u": torch.zeros(2)})
    b = save(tmp_path / "b.pt", {"t": torch.ones(3), "u": torch.zeros(2)})
    assert cli("diff", a, b).code == 1
    run = cli("diff", a, b, "--no-values")
    assert run.code == 0
    assert run.out.strip() == "2 tensors (names, shapes and dtypes): 2 equal"


def test_renamed_tensors(cli: Cli, tmp_path: Path) -> None:
    tensor = torch.randn(3)
    a = save(tmp_path / "a.pt", {"model.t": tensor, "model.u": tensor})
    b = save(tmp_path / "b.pt", {"t": tensor, "u": tensor})
    assert cli("diff", a, b).code == 1
    assert cli("diff", a, b, "--rename", "model.=").code == 0
    run = cli("diff", a, b, "--rename", "model.t=x", "--rename", "model.u=x")
    assert run.code == 1
    assert "'model.t' and 'model.u' are both renamed to 'x'" in run.err


def test_errors(cli: Cli, tmp_path: Path, llama: Path) -> None:
    assert cli("diff", llama, tmp_path / "nope").code == 3
    assert cli("diff", llama).code == 2
    damaged = tmp_path / "damaged"
    shutil.copytree(llama, damaged)
    data = (llama / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(data[:-4])
    assert cli("diff", llama, damaged).code == 1
