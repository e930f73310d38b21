from __future__ import annotations

from pathlib import Path

import torch
from command import Cli


def test_a_changed_byte_is_found_and_the_other_paths_are_still_read(
    cli: Cli, tmp_path: Path, llama: Path
) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    assert cli("verify", path).code == 0
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor([500.0]).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    run = cli("verify", path, llama, "--json")
    assert run.code == 1
    assert run.json["ok"] is False
    bad, good = run.json["results"]
    assert bad["ok"] is False
    assert bad["error"]["type"] == "ValueError"
    assert "CRC" in bad["error"]["message"]
    assert good["ok"] is True
    assert good["nbytes"] == (llama / "model.safetensors").stat().st_size


def test_a_file_cut_short_is_not_ok(cli: Cli, tmp_path: Path, llama: Path) -> None:
    data = (llama / "model.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[:-1])
    run = cli("verify", tmp_path / "m.safetensors")
    assert run.code == 1
    assert "NOT OK" in run.out


def test_an_absent_path_is_another_exit_code(cli: Cli, tmp_path: Path, llama: Path) -> None:
    run = cli("verify", tmp_path / "absent", llama)
    assert run.code == 3
    assert "ok      " in run.out


def test_what_was_read_fits_80_columns(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    first, read, checked = cli("verify", path).out.splitlines()
    assert first == f"ok      {path}"
    assert read.startswith("        1 tensor in 1 file: read ")
    assert checked.endswith(" matching checksums, 0 B without checksum")
    assert max(len(read), len(checked)) <= 80
