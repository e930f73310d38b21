"""Loading into shards: each rank gets its part of the checkpoint, and reads no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import eager_model, mixtral
from launch import RunRanks

WAYS = [
    ("TiedModel", "fully_shard"),
    ("TiedModel", "fully_shard by columns"),
    ("TwoLayers", "parallelize_module"),
    ("TwoLayers", "distribute_module"),
]


def saved_state(kind: str, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """A checkpoint of other values; of tied names it has one."""
    model = eager_model(kind)
    torch.manual_seed(1)
    state = {
        name: torch.randn_like(parameter).to(dtype) for name, parameter in model.named_parameters()
    }
    safetensors.torch.save_file(state, path)


def eager_loaded(kind: str, path: Path) -> dict[str, torch.Tensor]:
    model = eager_model(kind)
    model.load_state_dict(safetensors.torch.load_file(path), strict=False)
    return tensors_of(model)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_the_parts_together_are_the_eager_model(
    run_ranks: RunRanks, kind: str, way: str, dtype: torch.dtype, world: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    saved_state(kind, path, dtype=dtype)
    expected = eager_loaded(kind, path)
    results = run_ranks(
        world, "loading:load", kind=kind, way=way, path=str(path), options={"missing": "init"}
    )
    for rank, result in enumerate(results):
        where = f"rank {rank}"
        assert result["lazy before"], where
        assert_came_to_life(result, where)
        assert_same_tensors(expected, result["gathered"], where)


def test_experts_of_a_file_become_shards_of_stacks(run_ranks: RunRanks, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    source: Any = mixtral()
    source.save_pretrained(tmp_path / "model")
    for rank, result in enumerate(run_ranks(2, "loading:experts", path=str(tmp_path / "model"))):
        where = f"rank {rank}"
        assert_came_to_life(result, where)
        assert_same_tensors(tensors_of(source), result["gathered"], where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["own", "other"])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_the_dtype_of_shards_is_converted_in_place(
    run_ranks: RunRanks, kind: str, way: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    saved_state(kind, path)
    expected = eager_loaded(kind, path)
    for name, tensor in eager_model(kind).state_dict().items():
        if name in expected and tensor.is_floating_point():
            expected[name] = expected[name].to(dtype)
    name = str(dtype).removeprefix("torch.")
    for rank, result in enumerate(
        run_ranks(2, "loading:converted", kind=kind, way=way, path=str(path), dtype=name)
    ):
        where = f"rank {rank}"
        assert "no name of the checkpoint" in result["error"], where
        assert result["same"], where
        assert result["still lazy"] == result["lazy"], where
        assert_came_to_life(result, where)
        assert_same_tensors(expected, result["gathered"], where)


@pytest.mark.parametrize("job", ["deferred", "plain"], ids=["load", "load_state_dict of PyTorch"])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_parts_stay_lazy_until_they_are_materialized(
    run_ranks: RunRanks, kind: str, way: str, job: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    saved_state(kind, path)
    expected = eager_loaded(kind, path)
    for rank, result in enumerate(
        run_ranks(2, f"loading:{job}", kind=kind, way=way, path=str(path))
    ):
        where = f"rank {rank}"
        assert result["lazy"], where
        assert result["still lazy"] == result["lazy"], where
        assert_came_to_life(result, where)
        assert_same_tensors(expected, result["gathered"], where)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "parts"])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_set_model_state_dict_takes_a_checkpoint(
    run_ranks: RunRanks, kind: str, way: str, whole: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    saved_state(kind, path)
    expected = eager_loaded(kind, path)
    results = run_ranks(
        2, "loading:state_dict_options", kind=kind, way=way, path=str(path), whole=whole
    )
    for rank, result in enumerate(results):
        where = f"rank {rank}"
        assert result["lazy before"], where
        assert_came_to_life(result, where)
        assert_same_tensors(expected, result["gathered"], where)


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_what_the_checkpoint_lacks_is_initialized_on_every_rank(
    run_ranks: RunRanks, kind: str, way: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    saved_state(kind, path)
    state = safetensors.torch.load_file(path)
    dropped = "blocks.1.up.weight" if kind == "TiedModel" else "up.weight"
    del state[dropped]
    safetensors.torch.save_file(state, path)
    expected = eager_loaded(kind, path)
    for rank, result in enumerate(
        run_ranks(2, "loading:refused", kind=kind, way=way, path=str(path))
    ):
        where = f"rank {rank}"
        assert dropped in result["error"], where
        assert result["still lazy"] == result["lazy"], where
        assert result["lazy"], where
        assert_came_to_life(result, where)
        assert_same_tensors(expected, result["gathered"], where)


@pytest.mark.parametrize("job", ["bytes_read", "bytes_read_by_plain"])
@pytest.mark.parametrize("way", ["fully_shard", "distribute_module"])
def test_a_rank_reads_its_own_bytes(
    run_ranks: RunRanks, way: str, job: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    saved_state("Wide", path)
    slack = 2 << 20  # headers, and runs rounded to pages
    for rank, result in enumerate(
        run_ranks(2, f"loading:{job}", kind="Wide", way=way, path=str(path))
    ):
        where = f"rank {rank}: {result}"
        assert result["shards"] == 16 << 20, where
        assert result["shards"] <= result["read"] <= result["shards"] + slack, where
