"""Pipeline stages: a rank gives memory to its own layers only."""

from __future__ import annotations

import pytest
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import eager_model
from jobs.stages import eager_output, keep_stage
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
