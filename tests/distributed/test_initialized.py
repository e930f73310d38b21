"""Models that are sharded first and initialized later have the values of one process."""

from __future__ import annotations

import pytest
import torch
from assertions import assert_same_tensors, tensors_of
from jobs.initialized import single
from launch import RunRanks

WAYS = [("FSDP2", 1), ("FSDP2", 2), ("FSDP2", 4), ("tensors", 2), ("tensors", 4), ("both", 4)]


@pytest.mark.parametrize(("way", "world"), WAYS)
@pytest.mark.parametrize("pattern", ["lazy", "meta"])
def test_values_are_those_of_one_process(
    run_ranks: RunRanks, way: str, world: int, pattern: str
) -> None:
    model, state = single(pattern)
    whole = tensors_of(model)
    nbytes = sum(tensor.nbytes for tensor in whole.values())
    for rank, found in enumerate(run_ranks(world, "initialized:run", way=way, pattern=pattern)):
        assert found["lazy"] == list(whole)
        assert found["keyed"] == []
        assert_same_tensors(whole, found["gathered"], f"rank {rank}")
        assert torch.equal(found["state"], state)
        assert found["bytes"] <= nbytes / world * 2 + 64
