"""Tensor-parallel sets and differences are opened as what they make together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from written import PARTS, WHOLE, assert_holds, write_set

import dormant
from dormant import tensor_parallel


@pytest.mark.parametrize("name", ["consolidated.{:02}.pth", "consolidated.{:02}-of-03.model.pth"])
def test_a_tensor_parallel_set_is_merged(tmp_path: Path, name: str) -> None:
    paths = write_set(tmp_path, name)
    torch.save({}, tmp_path / "consolidated.00-of-03.optimizer.pth")
    for opened in (
        dormant.open_checkpoint(tmp_path),
        dormant.open_checkpoint(paths),
        dormant.open_checkpoint(reversed(paths)),
    ):
        assert_holds(opened, WHOLE)
        assert opened.files == tuple(paths)
        entry = opened.entries["layers.0.attention.wo.weight"]
        assert (entry.shape, entry.nbytes, entry.file) == ((6, 9), 6 * 9 * 4, None)
        assert [part.file for part in entry.parts] == paths
        assert opened.verify().nbytes > 0


def test_one_part_of_a_set_is_opened_as_it_is(tmp_path: Path) -> None:
    paths = write_set(tmp_path, "consolidated.{:02}.pth")
    assert_holds(dormant.open_checkpoint(paths[1]), PARTS[1])


def test_parts_are_merged_by_the_given_rules(tmp_path: Path) -> None:
    paths = write_set(tmp_path, "consolidated.{:02}.pth", [{"x": torch.ones(2, 2)}] * 2)
    with pytest.raises(KeyError, match="no rule matches"):
        dormant.open_checkpoint(paths)
    opened = dormant.open_checkpoint(paths, rules={"x": tensor_parallel.ROW})
    assert_holds(opened, {"x": torch.ones(2, 4)})


def test_a_set_without_all_parts(tmp_path: Path) -> None:
    paths = write_set(tmp_path, "consolidated.{:02}-of-03.model.pth")
    with pytest.raises(ValueError, match=r"set of 2 parts .* is missing parts \[1\]"):
        dormant.open_checkpoint([paths[0], paths[2]])
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"is missing parts \[2\]"):
        dormant.open_checkpoint(tmp_path)
    paths[1].rename(tmp_path / "consolidated.07-of-03.model.pth")
    with pytest.raises(
        ValueError, match=r"is missing parts \[1, 2\] and has parts \[7\] in addition to its 3"
    ):
        dormant.open_checkpoint(tmp_path)


def test_a_name_that_claims_a_billion_parts(tmp_path: Path) -> None:
    write_set(tmp_path, "consolidated.99999999{}.pth", PARTS[:1])
    with pytest.raises(ValueError, match=r"set of 1 parts .* is missing parts \[0, 1, .* 19\]"):
        dormant.open_checkpoint(tmp_path)


def test_two_sets_in_one_folder(tmp_path: Path) -> None:
    write_set(tmp_path, "consolidated.{:02}.pth")
    write_set(tmp_path, "consolidated.{:02}-of-03.model.pth")
    with pytest.raises(ValueError, match="more than one checkpoint"):
        dormant.open_checkpoint(tmp_path)


def test_differences_are_added_in_order(tmp_path: Path) -> None:
    base = write_set(tmp_path / "base", "consolidated.{:02}.pth")
    folders = []
    expected = dict(WHOLE)
    for number in range(2):
        parts = [{name: torch.randn_like(t) for name, t in part.items()} for part in PARTS]
        for part in parts:
            part["norm.weight"] = parts[0]["norm.weight"]
            part["layers.0.attention.wq.bias"] = torch.ones(4)
        folders.append(tmp_path / f"diff{number}")
        write_set(folders[-1], "consolidated.{:02}-of-03.model-diff.pth", parts)
        expected = tensor_parallel.apply_diffs(expected, [tensor_parallel.merge(parts)])
    checkpoint = dormant.open_checkpoint([base[0].parent, *folders])
    assert_holds(checkpoint, expected)
    entry = checkpoint.entries["norm.weight"]
    assert len(entry.parts) == 3
    assert len(checkpoint.files) == 9


def test_differences_alone_are_opened_as_they_are(tmp_path: Path) -> None:
    write_set(tmp_path, "consolidated.{:02}-of-03.model-diff.pth")
    assert_holds(dormant.open_checkpoint(tmp_path), WHOLE)


def test_differences_of_another_model(tmp_path: Path) -> None:
    write_set(tmp_path / "base", "consolidated.{:02}.pth")
    write_set(tmp_path / "diff", "consolidated.{:02}-of-02.model-diff.pth", PARTS[:2])
    with pytest.raises(
        ValueError, match=r"do not match.*'layers\.0\.attention\.w. ?.*shape \(8, 6\)"
    ):
        dormant.open_checkpoint([tmp_path / "base", tmp_path / "diff"])
