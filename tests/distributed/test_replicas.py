"""DDP and FSDP1 on lazy models."""

from __future__ import annotations

import pytest
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import eager_model
from launch import RunRanks


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("materialize_first", "init_sync"), [(False, True), (False, False), (True, True)]
)
def test_every_replica_is_the_eager_model(
    run_ranks: RunRanks, world: int, materialize_first: bool, init_sync: bool
) -> None:
    eager = tensors_of(eager_model("TiedModel"))
    results = run_ranks(
        world,
        "replicas:replicate",
        materialize_first=materialize_first,
        init_sync=init_sync,
    )
    for rank, result in enumerate(results):
        where = f"rank {rank}"
        # Only the broadcast from rank 0 needs values.
        expect_lazy = not materialize_first and not init_sync
        assert result["lazy before"] == (list(eager) if expect_lazy else []), where
        assert_came_to_life(result, where)
        assert_same_tensors(eager, result["local"], where)
        assert_same_tensors(result["eager step"], result["step"], where)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1_gathers_to_the_eager_model(
    run_ranks: RunRanks, world: int, use_orig_params: bool
) -> None:
    eager = eager_model("TiedModel").state_dict()
    results = run_ranks(world, "replicas:flatten", use_orig_params=use_orig_params)
    for rank, result in enumerate(results):
        where = f"rank {rank}"
        held = [name for name, tensor in result["local"].items() if tensor.numel()]
        assert result["lazy before"] == held, where
        assert_came_to_life(result, where)
        assert_same_tensors(result["eager local"], result["local"], where)
        assert_same_tensors(eager, result["gathered"], where)
        assert_same_tensors(result["eager step"], result["step"], where)
