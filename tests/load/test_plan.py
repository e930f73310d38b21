"""A plan says what a load will do and changes nothing; what does not fit is never passed over."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_load import Saver, assert_same_model, eager, eager_loaded, fingerprint, lazy, state_of
from loaded_modules import Plain, Tied
from torch import nn

import dormant
from dormant.tensors.names import grouped

Start = Callable[[Callable[[], nn.Module]], nn.Module]


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.head = nn.Linear(3, 2)


# dry_run


@pytest.mark.parametrize("start", [lazy, eager])
def test_a_plan_changes_nothing_and_says_what_a_load_does(start: Start, saved: Saver) -> None:
    state = state_of(Stack)
    del state["head.bias"]
    path = saved({**state, "surplus": torch.ones(1), "head.weight": torch.ones(5)})
    model = start(Stack)
    before = fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = dormant.load(model, path, dry_run=True, dtype=torch.bfloat16)
    assert fingerprint(model) == before
    assert plan.missing_keys == ("head.bias",)
    assert plan.unexpected_keys == ("surplus",)
    assert plan.mismatched_keys == (("head.weight", (5,), (2, 3)),)
    assert plan.refusal
    with pytest.raises(KeyError) as caught:
        dormant.load(model, path, dtype=torch.bfloat16)
    assert str(caught.value) == plan.refusal
    options: dict[str, Any] = {"unexpected": "ignore", "mismatched": "init", "missing": "init"}
    plan = dormant.load(model, path, dry_run=True, dtype=torch.bfloat16, **options)
    assert plan.refusal == ""
    report = dormant.load(model, path, dtype=torch.bfloat16, **options)
    planned = {tensor.names: tensor for tensor in plan.tensors}
    assert planned.keys() == {tensor.names for tensor in report.tensors}
    for tensor in report.tensors:
        expected = planned[tensor.names]
        assert tensor.origin == expected.origin
        assert (tensor.shape, tensor.dtype, tensor.nbytes) == (
            expected.shape,
            expected.dtype,
            expected.nbytes,
        )
        assert tensor.files == expected.files or start is eager


def test_a_plan_prints_groups_of_names_and_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"layers.0.weight": torch.ones(3, 3), "old\x1b": torch.ones(1)}, path)
    plan = dormant.load(lazy(Stack), path, dry_run=True)
    assert plan.files == (str(path),)
    text = str(plan)
    assert "layers.{1...3}.weight" in text
    assert "layers.{0...3}.bias" in text
    assert "old\\x1b" in text
    assert "load would raise an error." in text
    assert plan.to_dict()["missing_keys"] == plan.missing_keys
    assert repr(plan) == (
        "LoadPlan(1 of 10 tensors from the checkpoint, 9 missing, 1 unexpected, 0 mismatched, "
        "refused)"
    )


def test_a_damaged_file_has_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 64)
    model = lazy(Stack)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        dormant.load(model, path, dry_run=True)
    assert fingerprint(model) == before


# Missing names


def test_missing_names_are_warned_of_once_in_groups(saved: Saver) -> None:
    state = state_of(Stack)
    for name in [name for name in state if name.startswith("layers") or name == "head.bias"]:
        del state[name]
    model = lazy(Stack)
    with pytest.warns(UserWarning, match="missing from the checkpoint") as caught:
        dormant.load(model, saved(state))
    (warning,) = caught
    assert warning.filename == __file__
    lines = str(warning.message).splitlines()
    assert lines[1:4] == ["  layers.{0...3}.weight", "  layers.{0...3}.bias", "  head.bias"]
    assert "9 of the model's tensors are missing from the checkpoint" in lines[0]
    assert_same_model(eager_loaded(Stack, state, strict=False), model)


@pytest.mark.parametrize("missing", ["init", "warn"])
def test_a_warning_comes_only_where_it_is_due(missing: Any, saved: Saver) -> None:
    state = state_of(Tied)
    del state["head.weight"]  # the same tensor as embedding.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dormant.load(lazy(Tied), saved(state), missing=missing)
        dormant.load(lazy(Plain), saved({"coarse": state_of(Plain)["coarse"]}), missing="init")


def test_the_error_has_the_names_by_kind(saved: Saver) -> None:
    state = {**state_of(Plain), "coarse": torch.ones(7, 4), "surplus": torch.ones(1)}
    del state["frozen"]
    with pytest.raises(KeyError) as caught:
        dormant.load(lazy(Plain), saved(state), missing="error")
    error: Any = caught.value
    assert error.missing_keys == ("frozen",)
    assert error.unexpected_keys == ("surplus",)
    assert error.mismatched_keys == (("coarse", (7, 4), (7, 3)),)


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        ([], []),
        (["a.0.w", "a.1.w"], ["a.{0, 1}.w"]),
        (["a.0.w", "a.1.w", "a.2.w", "a.0.b"], ["a.{0...2}.w", "a.0.b"]),
        (["a.0.w", "a.2.w", "a.4.w"], ["a.{0, 2, 4}.w"]),
        ([f"l.{i}.e.{j}.w" for i in range(3) for j in range(8)], ["l.{0...2}.e.{0...7}.w"]),
        (["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w"], ["l.0.e.{0, 1}.w", "l.1.e.0.w"]),
        (["a.00.w", "a.1.w"], ["a.00.w", "a.1.w"]),
        (["a..0", "0", "1"], ["a..0", "{0, 1}"]),
    ],
)
def test_groups_are_exactly_the_names(names: list[str], lines: list[str]) -> None:
    assert grouped(names) == lines


# A checkpoint of which no name fits


@pytest.mark.parametrize("start", [lazy, eager])
@pytest.mark.parametrize(
    ("state", "rename"),
    [
        ({"x.weight": torch.ones(4, 4)}, None),
        ({"weight": torch.ones(4, 4), "bias": torch.ones(4)}, {"": None}),
        ({"state_dict": {"weight": torch.ones(4, 4)}, "best": torch.ones(())}, None),
        ({"epoch": 3}, None),
    ],
    ids=["other names", "all dropped", "a state dict inside", "no tensors"],
)
def test_a_checkpoint_that_fits_nowhere_is_refused(start: Start, state: Any, rename: Any) -> None:
    model = start(lambda: nn.Linear(4, 4))
    before = fingerprint(model)
    with pytest.raises(KeyError, match="no name of the checkpoint") as caught:
        dormant.load(
            model, state, rename=rename, missing="init", unexpected="ignore", mismatched="init"
        )
    assert fingerprint(model) == before
    error: Any = caught.value
    assert error.missing_keys == ("weight", "bias")
    assert ("checkpoint['state_dict']" in str(error)) == ("state_dict" in state)


# Renaming to None


def test_a_mapping_leaves_names_and_prefixes_out(saved: Saver) -> None:
    state = {**state_of(Stack), "old.a": torch.ones(1), "old.b": torch.ones(1), "x": torch.ones(1)}
    model = lazy(Stack)
    dormant.load(model, saved(state), rename={"old.": None, "x": None}, missing="error")
    assert_same_model(eager_loaded(Stack, state, strict=False), model)
    with pytest.raises(TypeError, match="rename must map names to names, or to None"):
        dormant.load(lazy(Stack), state, rename={"x": 3})  # type: ignore[dict-item]


# Options


def test_a_lazy_model_cannot_wait_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = torch.device("cuda", 0)
    monkeypatch.setattr("dormant.loading.api.check_device", lambda *_: elsewhere)
    model = lazy(Stack)
    with pytest.raises(ValueError, match=r"pass it to dormant\.materialize\(model, device="):
        dormant.load(model, state_of(Stack), device=0, materialize=False)
    assert dormant.is_lazy(model)


def test_the_cpu_is_where_a_lazy_model_is() -> None:
    model = lazy(Stack)
    dormant.load(model, state_of(Stack), device="cpu", materialize=False)
    assert dormant.is_lazy(model)


@pytest.mark.parametrize("text", ["2GiB", "1.5 GB"])
def test_a_memory_budget_may_be_text(text: str, saved: Saver) -> None:
    state = state_of(Plain)
    model = lazy(Plain)
    dormant.load(model, saved(state), memory_budget=text)
    assert_same_model(eager_loaded(Plain, state), model)
    dormant.materialize(lazy(Plain), memory_budget=text)


@pytest.mark.parametrize("budget", ["2", "many", "0GB", ""])
def test_other_text_is_not_a_memory_budget(budget: str) -> None:
    with pytest.raises(ValueError, match="load: memory_budget"):
        dormant.load(lazy(Plain), state_of(Plain), memory_budget=budget)
    with pytest.raises(ValueError, match="materialize: memory_budget"):
        dormant.materialize(lazy(Plain), memory_budget=budget)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, torch.float16),
        ('{"dtype": "bfloat16"}', torch.bfloat16),
        ('{"torch_dtype": "float64"}', torch.float64),
        ('{"dtype": "float8_e4m3fn"}', torch.float16),
        ('{"dtype": "Tensor"}', torch.float16),
        ('{"dtype": 3}', torch.float16),
        ("[" * 100_000, torch.float16),
        ("\x00", torch.float16),
    ],
)
def test_auto_is_the_dtype_of_the_checkpoint(
    config: str | None, expected: torch.dtype, tmp_path: Path
) -> None:
    state = {"weight": torch.ones(2, 2).half(), "bias": torch.ones(2)}
    torch.save({"count": torch.tensor(3), **state}, tmp_path / "model.pt")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    model = lazy(lambda: nn.Linear(2, 2))
    dormant.load(model, tmp_path, dtype="auto", unexpected="ignore")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_auto_keeps_the_dtype_where_nothing_tells() -> None:
    def build() -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("count", torch.tensor(0))
        return module

    model = lazy(build)
    dormant.load(model, {"count": torch.tensor(3)}, dtype="auto", missing="init")
    assert model.get_parameter("weight").dtype is torch.float32
    assert int(model.get_buffer("count")) == 3


# Several files


def test_a_list_of_tensor_parallel_parts_is_merged(tmp_path: Path) -> None:
    paths = [tmp_path / f"consolidated.{rank:02}.pth" for rank in range(2)]
    for rank, path in enumerate(paths):
        part = {"wq.weight": torch.full((2, 4), float(rank)), "norm.weight": torch.ones(4)}
        torch.save(part, path)

    def build(rows: int) -> nn.Module:
        return nn.ModuleDict({"wq": nn.Linear(4, rows, bias=False), "norm": nn.RMSNorm(4)})

    # Whatever stands between them, and in whichever order.
    lists: list[list[Any]] = [
        [*paths],
        [paths[1], paths[0]],
        [paths[0], {"norm.weight": torch.ones(4)}, paths[1]],
    ]
    for several in lists:
        whole = lazy(lambda: build(4))
        dormant.load(whole, several, missing="error")
        assert whole.get_parameter("wq.weight")[:, 0].tolist() == [0, 0, 1, 1]
        with pytest.raises(KeyError, match=r"wq\.weight: \(4, 4\) in the checkpoint, \(2, 4\)"):
            dormant.load(lazy(lambda: build(2)), several)
    torch.save({"norm.weight": torch.ones(4)}, tmp_path / "other.pt")
    rank = lazy(lambda: build(2))
    dormant.load(rank, paths[1], missing="error")  # one part is one rank's checkpoint
    assert rank.get_parameter("wq.weight")[:, 0].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"is missing parts \[0\]"):
        dormant.load(lazy(lambda: build(2)), [tmp_path / "other.pt", paths[1]])


# A tensor beside the state dict


def test_the_mapping_that_fits_is_the_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    one = {"scale": torch.full((3,), 2.0)}
    other = {"a": torch.ones(1), "b": torch.ones(1)}
    torch.save({"loss": torch.tensor(0.5), "model": one, "ema": other, "more": other}, path)

    def build() -> nn.Module:
        module = nn.Module()
        module.register_parameter("scale", nn.Parameter(torch.zeros(3)))
        return module

    model = lazy(build)
    dormant.load(model, path, missing="error")
    assert model.get_parameter("scale").tolist() == [2.0, 2.0, 2.0]
    model = eager(lambda: nn.ModuleDict({"inner": build()}))
    dormant.load(model, path, missing="error", rename={"": "inner."})
    with pytest.raises(ValueError, match="Choose one"):
        dormant.open_checkpoint(path)


def test_json_of_a_plan(saved: Saver) -> None:
    plan = dormant.load(lazy(Stack), saved(state_of(Stack)), dry_run=True)
    assert json.loads(json.dumps(plan.to_dict()))["refusal"] == ""
