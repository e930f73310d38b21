"""FSDP2 on a lazy model: each rank brings its own shards to life, and no others."""

from __future__ import annotations

import pytest
import torch
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import eager_model, part_of
from launch import RunRanks

MESHES = [[1], [2], [4], [2, 2], [2, 1], [1, 2], [2, 4], [4, 2]]


def _world(mesh: list[int]) -> int:
    return mesh[0] * (mesh[1] if len(mesh) > 1 else 1)


@pytest.mark.parametrize(
    ("mesh", "dim", "dtype"),
    [(mesh, 0, "float32") for mesh in MESHES] + [([2], 1, "float32"), ([4], 0, "bfloat16")],
    ids=str,
)
def test_every_rank_holds_its_part_of_the_eager_model(
    run_ranks: RunRanks, mesh: list[int], dim: int, dtype: str
) -> None:
    eager = tensors_of(eager_model("TiedModel").to(getattr(torch, dtype)))
    parameters = [name for name in eager if name != "angles"]
    results = run_ranks(_world(mesh), "fully_sharded:shard", mesh=mesh, dim=dim, dtype=dtype)
    for rank, result in enumerate(results):
        where = f"rank {rank}"
        # Shards are cut from lazy tensors without giving either memory.
        assert set(parameters) <= set(result["lazy before"]), where
        assert_came_to_life(result, where)
        expected = {
            name: part_of(tensor, dim if tensor.dim() > dim else 0, mesh[-1], rank % mesh[-1])
            if name in parameters
            else tensor
            for name, tensor in eager.items()
        }
        assert_same_tensors(expected, result["local"], where)
        # The same whole for every mesh, hence the same for every number of ranks.
        assert_same_tensors(eager, result["gathered"], where)


@pytest.mark.parametrize("mesh", [[2], [2, 2]], ids=str)
def test_training_continues_as_from_an_eager_model(run_ranks: RunRanks, mesh: list[int]) -> None:
    for rank, result in enumerate(run_ranks(_world(mesh), "fully_sharded:shard", mesh=mesh)):
        assert len(result["step"]) > 5
        assert_same_tensors(result["eager step"], result["step"], f"rank {rank}")


def test_tensor_parallel_layers_sharded_again(run_ranks: RunRanks) -> None:
    eager = tensors_of(eager_model("TwoLayers"))
    for rank, result in enumerate(run_ranks(4, "fully_sharded:shard_tensor_parallel")):
        where = f"rank {rank}"
        assert result["lazy before"] == list(eager), where
        assert_came_to_life(result, where)
        assert_same_tensors(result["eager local"], result["local"], where)
        assert_same_tensors(eager, result["gathered"], where)
        assert_same_tensors(result["eager step"], result["step"], where)


def test_a_lazy_sharded_model_may_run_without_materialize(run_ranks: RunRanks) -> None:
    for rank, result in enumerate(run_ranks(2, "fully_sharded:shard_without_materializing")):
        assert_same_tensors(result["eager step"], result["step"], f"rank {rank}")


@pytest.mark.parametrize("world", [1, 2])
def test_reports_and_summaries_list_each_parameter_once_by_its_name(
    run_ranks: RunRanks, world: int
) -> None:
    for rank, result in enumerate(run_ranks(world, "fully_sharded:shard_and_report")):
        where = f"rank {rank}"
        for what, listed in result["listed"].items():
            names = [name for names, _ in listed for name in names]
            assert len(names) == len(set(names)), (where, what)
            assert {names[0]: nbytes for names, nbytes in listed} == result["parts"], (where, what)
            # Tied parameters are one.
            assert ("embedding.weight", "head.weight") in [names for names, _ in listed], what
        total = sum(result["parts"].values())
        assert all(nbytes >= total for nbytes in result["nbytes"]), where
        assert len(set(result["nbytes"])) == 1, where
        trained = [name for names, _ in result["trained"] for name in names]
        assert len(trained) == len(set(trained)), where
        assert "embedding.weight" in trained, where
        assert "embedding.weight.grad" in trained, where
