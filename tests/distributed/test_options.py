"""What FSDP2 users set, and PyTorch's distributed checkpoints, with models that were lazy."""

from __future__ import annotations

from pathlib import Path

import pytest
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import eager_model
from jobs.options import COMPOSITIONS, OPERATIONS
from launch import RunRanks


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_lazy_model_is_composed_as_an_eager_one(run_ranks: RunRanks, name: str) -> None:
    for rank, result in enumerate(run_ranks(2, "options:compose", name=name)):
        where = f"{name}, rank {rank}"
        assert result["lazy before"], where
        assert_came_to_life(result, where)
        assert_same_tensors(result["eager local"], result["local"], where)
        assert len(result["step"]) > 5
        assert_same_tensors(result["eager step"], result["step"], where)


def test_full_tensor_of_a_lazy_model_is_the_eager_one(run_ranks: RunRanks) -> None:
    eager = tensors_of(eager_model("TiedModel"))
    for rank, result in enumerate(run_ranks(2, "options:gather_lazy")):
        assert result["lazy before"]
        assert_same_tensors(eager, result["gathered"], f"rank {rank}")


@pytest.mark.parametrize("materialized", [True, False], ids=["materialized", "lazy"])
def test_a_distributed_checkpoint_holds_the_eager_model(
    run_ranks: RunRanks, tmp_path: Path, materialized: bool
) -> None:
    eager = tensors_of(eager_model("TiedModel"))
    folder = str(tmp_path / "checkpoint")
    results = run_ranks(2, "options:checkpoint", folder=folder, materialized=materialized)
    for rank, result in enumerate(results):
        assert result["lazy before"]
        assert_same_tensors(result["expected"], result["local"], f"rank {rank}")
        assert_same_tensors(eager, result["gathered"], f"rank {rank}")
    # As PyTorch does it, rank 0 alone has the whole.
    expected = eager_model("TiedModel").state_dict()
    assert_same_tensors(expected, results[0]["whole"], "the whole state dict")


def test_operators_on_lazy_parts_bring_them_to_life(run_ranks: RunRanks) -> None:
    for rank, result in enumerate(run_ranks(2, "options:operate")):
        assert result["still lazy"]
        assert len(result["eager"]) == len(OPERATIONS)
        assert_same_tensors(result["eager"], result["lazy"], f"rank {rank}")
