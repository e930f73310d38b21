"""Pipeline stages: a rank gives memory to its own layers only."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import ROWS, SEED, eager_model
from jobs.stages import MICROBATCHES, eager_output, keep_stage, tied_stages
from launch import RunRanks

from compare import assert_same_bits


@pytest.mark.parametrize("world", [2, 4])
def test_a_stage_is_its_layers_of_the_eager_model(run_ranks: RunRanks, world: int) -> None:
    whole = tensors_of(eager_model("Stages"))
    results = run_ranks(world, "stages:run")
    gathered = set()
    for rank, result in enumerate(results):
        expected = tensors_of(keep_stage(eager_model("Stages"), rank, world))
        assert_came_to_life(result, f"rank {rank}")
        assert result["lazy before"] == list(expected)
        assert_same_tensors(expected, result["local"], f"rank {rank}")
        assert result["bytes"] == sum(tensor.nbytes for tensor in expected.values())
        gathered |= set(result["local"])
    assert gathered == set(whole)
    assert_same_bits(eager_output(), results[-1]["output"].detach(), "output of the last stage")


def test_the_other_layers_stay_lazy(run_ranks: RunRanks) -> None:
    whole = tensors_of(eager_model("Stages"))
    for rank, result in enumerate(run_ranks(2, "stages:split_whole")):
        prefix = f"blocks.{rank}."
        expected = {
            name.removeprefix(prefix): tensor
            for name, tensor in whole.items()
            if name.startswith(prefix)
        }
        assert_same_tensors(expected, result["local"], f"rank {rank}")
        assert result["lazy"] == [name for name in whole if not name.startswith(prefix)]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("loads", [False, True], ids=["materialize", "load"])
def test_tied_weights_in_the_first_and_the_last_stage(
    run_ranks: RunRanks, tmp_path: Path, world: int, loads: bool
) -> None:
    torch.manual_seed(SEED)
    model = tied_stages()
    path = tmp_path / "model.safetensors"
    if loads:
        state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        del state["head.weight"]  # one name is enough for both
        safetensors.torch.save_file(state, path)
        model.load_state_dict({**state, "head.weight": state["embedding.weight"]})
    whole = tensors_of(model) | {"head.weight": model.get_parameter("head.weight").detach()}
    results = run_ranks(world, "stages:tied", path=str(path) if loads else None)
    for rank, result in enumerate(results):
        expected = {name: whole[name] for name in result["local"]}
        assert_same_tensors(expected, result["local"], f"rank {rank}")
        nbytes = sum(tensor.nbytes for tensor in expected.values())
        assert result["read"] == (nbytes if loads else 0)
    assert "embedding.weight" in results[0]["local"]
    assert "head.weight" in results[-1]["local"]
    tokens = torch.arange(ROWS - 1).chunk(MICROBATCHES)
    output = torch.cat([model(part) for part in tokens]).detach()
    torch.testing.assert_close(results[-1]["output"].detach(), output)
