"""Every recipe of docs/distributed.md ends with the eager model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from assertions import assert_same_tensors, tensors_of
from jobs.documented import eager_model
from launch import RunRanks

DOCUMENT = Path(__file__).parents[2] / "docs" / "distributed.md"
RECIPES = dict(
    re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)```", DOCUMENT.read_text(), re.M | re.S)
)


def test_the_recipes_are_found() -> None:
    assert list(RECIPES) == ["FSDP2", "Tensor parallelism", "DDP", "Pipeline"]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_ends_with_the_eager_model(run_ranks: RunRanks, title: str) -> None:
    whole = tensors_of(eager_model())
    found: dict[str, torch.Tensor] = {}
    for rank, result in enumerate(run_ranks(2, "documented:run", code=RECIPES[title])):
        assert result["lazy"] == []
        gathered = {
            name.removeprefix("module."): tensor for name, tensor in result["gathered"].items()
        }
        expected = {name: whole[name] for name in gathered}
        assert_same_tensors(expected, gathered, f"rank {rank}")
        assert title == "Pipeline" or len(gathered) == len(whole)
        found |= gathered
    assert found.keys() == whole.keys()
