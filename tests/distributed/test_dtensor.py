"""DTensors over lazy tensors: tensor parallelism without ever forming a whole weight."""

from __future__ import annotations

import pytest
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import eager_model, part_of
from launch import RunRanks

from compare import assert_same_bits


@pytest.mark.parametrize("placement", ["Shard(0)", "Shard(1)", "Replicate()"])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("source", [None, 0])
def test_a_distributed_tensor_is_its_part_of_the_eager_one(
    run_ranks: RunRanks, world: int, placement: str, source: int | None
) -> None:
    eager = eager_model("TiedModel").get_parameter("embedding.weight").detach()
    results = run_ranks(world, "placed:tensor", placement=placement, source=source)
    for rank, result in enumerate(results):
        expected = (
            eager if placement == "Replicate()" else part_of(eager, int(placement[6]), world, rank)
        )
        assert_same_bits(expected, result["local"], f"rank {rank}")
        assert_same_bits(eager, result["gathered"], f"rank {rank}, gathered")
        assert not result["lazy after"]
        # Each rank cuts its own part from its own lazy tensor, which stays lazy but where it is
        # the part. The default sends rank 0's values instead, and those have to be real.
        if source is None:
            assert result["lazy before"]
            assert result["whole still lazy"] or world == 1 or placement == "Replicate()"


def test_a_mapping_of_dtensors_and_their_optimizer(run_ranks: RunRanks) -> None:
    expected = {name: value - 0.5 for name, value in tensors_of(eager_model("TwoLayers")).items()}
    for rank, result in enumerate(run_ranks(2, "placed:state")):
        assert_same_tensors(expected, result, f"rank {rank}")


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("source", [None, 0])
def test_distribute_module(run_ranks: RunRanks, world: int, source: int | None) -> None:
    eager = tensors_of(eager_model("TwoLayers"))
    for rank, result in enumerate(run_ranks(world, "placed:module", source=source)):
        where = f"rank {rank}"
        if source is None:
            assert result["lazy before"] == list(eager), where
        assert_came_to_life(result, where)
        expected = {
            name: part_of(tensor, 1, world, rank) if tensor.dim() == 2 else tensor
            for name, tensor in eager.items()
        }
        assert_same_tensors(expected, result["local"], where)
        assert_same_tensors(eager, result["gathered"], where)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("source", [None, 0])
def test_parallelize_module(run_ranks: RunRanks, world: int, source: int | None) -> None:
    eager = tensors_of(eager_model("TwoLayers"))
    dims = {"up.weight": 0, "up.bias": 0, "down.weight": 1}
    for rank, result in enumerate(run_ranks(world, "placed:parallel", source=source)):
        where = f"rank {rank}"
        if source is None:
            assert result["lazy before"] == list(eager), where
        assert_came_to_life(result, where)
        expected = {
            name: part_of(tensor, dims[name], world, rank) if name in dims else tensor
            for name, tensor in eager.items()
        }
        assert_same_tensors(expected, result["local"], where)
        assert_same_tensors(eager, result["gathered"], where)
        assert_same_tensors(result["eager step"], result["step"], where)


def test_a_parallel_model_that_is_called_before_it_is_materialized(run_ranks: RunRanks) -> None:
    for rank, (lazy, eager) in enumerate(run_ranks(2, "placed:parallel_before_a_plain_layer")):
        assert_same_bits(eager, lazy, f"rank {rank}")
