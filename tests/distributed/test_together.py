"""Ranks that load one model: all succeed, or all raise, soon, and every model is as it was."""

from __future__ import annotations

import errno
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from jobs.models import Layered
from launch import RunRanks, check_others_after_a_kill

from compare import assert_same_bits

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "quantize"))


@pytest.mark.parametrize("way", ["float", "nf4", "parallel"])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("what", ["missing", "short", "names", "header"])
def test_a_rank_whose_file_is_bad(
    run_ranks: RunRanks, path: Path, tmp_path: Path, way: str, world: int, what: str
) -> None:
    bad = tmp_path / "bad.safetensors"
    if what == "short":
        bad.write_bytes(path.read_bytes()[:-100])
    elif what == "names":
        state = Layered().state_dict()
        del state["layers.1.weight"]
        safetensors.torch.save_file({**state, "other": torch.ones(1)}, bad)
    elif what == "header":
        bad.write_bytes(b"\xff" * 64)
    ranks = run_ranks(world, "together:one_fails", way=way, path=str(path), bad_path=str(bad))
    own = ranks[1]["error"][1]
    for rank, result in enumerate(ranks):
        kind, message = result["error"]
        if what == "missing":
            assert kind == "FileNotFoundError"
            assert result["errno"] == errno.ENOENT
        elif what == "names":
            assert kind == ("KeyError" if rank != 1 else "NamesError")
        else:
            assert kind == "ValueError"
        if rank != 1 and what != "missing":
            assert own.strip("'\"")[:40] in message
            assert "rank 1" in message
        assert result["seconds"] < 20
        assert result["lazy"]
        assert all(result["lazy"])
        assert result["again"] == "None"
        assert_same_bits(ranks[0]["output"], result["output"], f"rank {rank}")


@pytest.mark.parametrize("way", ["float", "nf4", "parallel"])
@pytest.mark.parametrize("kind", ["allocate", "read"])
@pytest.mark.parametrize("ranks", [[1], [0, 1]])
def test_a_failure_at_every_step(
    run_ranks: RunRanks, path: Path, way: str, kind: str, ranks: list[int]
) -> None:
    results = run_ranks(
        2,
        "together:every_step_fails",
        way=way,
        path=str(path),
        kind=kind,
        ranks=ranks,
        seconds=240,
    )
    first, second = results
    assert any(name != "NoneType" for name in first["raised"])
    for mine, theirs, lazy in zip(first["raised"], second["raised"], first["lazy"], strict=True):
        # Either both have the model, or neither.
        assert (mine == "NoneType") == (theirs == "NoneType"), (first["raised"], second["raised"])
        assert all(lazy) == (mine != "NoneType")
    assert first["lazy"] == second["lazy"]
    assert_same_bits(first["output"], second["output"], "output")


@pytest.mark.parametrize("world", [2, 4])
def test_messages_of_any_length(run_ranks: RunRanks, world: int) -> None:
    for found in run_ranks(world, "together:messages"):
        assert found["heard"] == found["expected"]


@pytest.mark.parametrize("loads", [False, True], ids=["materialize", "load"])
def test_ranks_that_recorded_different_values(
    run_ranks: RunRanks, path: Path, tmp_path: Path, loads: bool
) -> None:
    state = {name: t for name, t in Layered().state_dict().items() if name != "head.weight"}
    safetensors.torch.save_file(state, tmp_path / "part.safetensors")
    partial = str(tmp_path / "part.safetensors") if loads else None
    first, second = run_ranks(2, "together:other_seeds", path=partial)
    name = "head.weight" if loads else "layers.0.weight"
    for message in first:
        assert f"different values for {name}" in message
        assert message.startswith("ValueError: ")
    assert first == second


def test_ranks_that_quantized_different_weights(run_ranks: RunRanks, path: Path) -> None:
    for message in run_ranks(2, "together:other_weights", path=str(path)):
        assert message.startswith("ValueError: load: ranks ")
        assert "parts of different quantized weights, first layers.1.weight: " in message


def test_a_rank_with_a_mesh_of_its_own_waits_for_nobody(run_ranks: RunRanks, path: Path) -> None:
    model: Any = Layered()
    model.load_state_dict(safetensors.torch.load_file(path))
    from peers import four_bit

    quantize = functools.partial(four_bit, quant_type="nf4")
    model.layers = torch.nn.ModuleList(map(quantize, model.layers))
    _, output = run_ranks(2, "together:alone", path=str(path))
    assert_same_bits(model(torch.ones(2, 64)).detach(), output)


def test_ctrl_c_on_one_rank(run_ranks: RunRanks, path: Path) -> None:
    first, second = run_ranks(2, "together:interrupted", path=str(path))
    assert second["error"].startswith("KeyboardInterrupt")
    assert first["error"].startswith("RuntimeError: KeyboardInterrupt")
    assert all(first["lazy"])
    assert all(second["lazy"])


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_that_is_killed(path: Path, tmp_path: Path, world: int) -> None:
    check_others_after_a_kill("together", world, tmp_path, str(path))
