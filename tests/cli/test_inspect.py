from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from command import Cli


def test_every_tensor_is_described_as_safetensors_describes_it(cli: Cli, llama: Path) -> None:
    run = cli("inspect", llama, "--json", "--hash")
    assert run.code == 0
    expected = safetensors.torch.load_file(llama / "model.safetensors")
    assert [tensor["name"] for tensor in run.json["tensors"]] == list(expected)
    data = (llama / "model.safetensors").read_bytes()
    for described in run.json["tensors"]:
        tensor = expected[described["name"]]
        begin = described["offset"]
        assert described["shape"] == list(tensor.shape)
        assert described["dtype"] == "float32"
        assert data[begin : begin + described["nbytes"]] == tensor.numpy().tobytes()
        assert described["sha256"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert run.json["totals"]["elements"] == sum(t.numel() for t in expected.values())


def test_equal_siblings_are_one_row_and_levels_add_up(cli: Cli, llama: Path) -> None:
    tree = cli("inspect", llama, "--json").json["tree"]
    layers = next(row for row in tree if row["name"] == "[0-1]")
    assert layers["siblings"] == 2
    totals = cli("inspect", llama, "--json").json["totals"]
    outermost = [row for row in tree if row["level"] == 0]
    assert sum(row["nbytes"] for row in outermost) == totals["nbytes"]
    deepest = [row for row in tree if row["shape"] is not None]
    assert sum(row["tensors"] for row in deepest) == totals["tensors"] == 21


def test_siblings_that_differ_keep_rows_of_their_own(cli: Cli, tmp_path: Path) -> None:
    sizes = [4, 4, 8, 4]
    state = {f"layers.{i}.weight": torch.zeros(size) for i, size in enumerate(sizes)}
    torch.save(state, tmp_path / "m.pt")
    tree = cli("inspect", tmp_path / "m.pt", "--json").json["tree"]
    names = [row["name"] for row in tree if row["level"] == 1]
    assert names == ["[0-1].weight", "2.weight", "3.weight"]


def test_depth_limits_the_tree_and_not_the_totals(cli: Cli, llama: Path) -> None:
    run = cli("inspect", llama, "--depth", "1", "--json")
    assert {row["level"] for row in run.json["tree"]} == {0}
    assert run.json["totals"]["tensors"] == 21


def test_tied_names_and_equal_contents_are_duplicates(cli: Cli, tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    state = {"a": tied, "b": tied, "copy": tied.clone(), "other": torch.zeros(4)}
    torch.save(state, tmp_path / "m.pt")
    (quick,) = cli("inspect", tmp_path / "m.pt", "--json").json["duplicates"]
    assert quick == {"names": ["a", "b"], "nbytes": 16, "same_bytes_of_the_file": True}
    (hashed,) = cli("inspect", tmp_path / "m.pt", "--json", "--hash").json["duplicates"]
    assert hashed["names"] == ["a", "b", "copy"]
    assert hashed["same_bytes_of_the_file"] is False


def test_tensors_are_listed_with_their_offsets(cli: Cli, llama: Path) -> None:
    run = cli("inspect", llama, "--tensors")
    assert "model.layers.1.self_attn.q_proj.weight" in run.out
    assert "64 x 64" in run.out


def test_names_cannot_drive_the_terminal(cli: Cli, tmp_path: Path) -> None:
    safetensors.torch.save_file({"\x1b[2Jx": torch.zeros(1)}, tmp_path / "m.safetensors")
    for arguments in ([], ["--tensors"]):
        run = cli("inspect", tmp_path / "m.safetensors", *arguments)
        assert "\x1b" not in run.out
        assert "\\x1b[2Jx" in run.out


def test_a_name_of_a_thousand_dots_is_shown(cli: Cli, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a." * 3000: torch.zeros(1)}, tmp_path / "m.safetensors")
    assert cli("inspect", tmp_path / "m.safetensors").code == 0
