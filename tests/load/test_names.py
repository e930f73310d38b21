"""Names and shapes that the model and the checkpoint do not share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from eager_load import (
    Saver,
    assert_same_model,
    eager,
    eager_loaded,
    fingerprint,
    lazy,
    state_of,
)
from loaded_modules import Nested, Plain, Tied
from torch import nn

import dormant
from dormant.tensors.names import renamed_prefix

Start = Callable[[Callable[[], nn.Module]], nn.Module]


def without(state: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    kept = {name: t for name, t in state.items() if not name.startswith(prefixes)}
    assert len(kept) < len(state)
    return kept


@pytest.mark.parametrize("dropped", ["layers", "scales.1", "embedding", ""])
def test_missing_tensors_are_initialized_as_in_eager(dropped: str, saved: Saver) -> None:
    state = without(state_of(Plain), dropped)
    model = lazy(Plain)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(Plain, state, strict=False), model)


def test_missing_tensors_of_a_real_model_keep_their_values(saved: Saver) -> None:
    state = without(state_of(Plain), "layers")
    model = eager(Plain)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(Plain, state, strict=False), model)


def test_missing_tensors_can_be_refused_all_of_them(saved: Saver) -> None:
    path = saved(without(state_of(Plain), "layers", "coarse"))
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(KeyError) as caught:
        dormant.load(model, path, missing="error")
    for name in ("layers.0.weight", "layers.0.bias", "layers.1.weight", "coarse"):
        assert name in caught.value.args[0]
    assert fingerprint(model) == before


def test_unexpected_tensors_are_refused_all_of_them(saved: Saver) -> None:
    state = {**state_of(Plain), "layers.2.weight": torch.ones(2), "head": torch.ones(1)}
    path = saved(state)
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(KeyError) as caught:
        dormant.load(model, path)
    assert "layers.2.weight" in caught.value.args[0]
    assert "head" in caught.value.args[0]
    assert fingerprint(model) == before
    dormant.load(model, path, unexpected="ignore")
    assert_same_model(eager_loaded(Plain, state, strict=False), model)


def test_mismatched_shapes_are_refused_all_of_them(saved: Saver) -> None:
    state = {**state_of(Plain), "coarse": torch.ones(7, 4), "embedding.weight": torch.ones(51, 12)}
    path = saved(state)
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(KeyError) as caught:
        dormant.load(model, path)
    text = caught.value.args[0]
    for name, theirs, ours in (
        ("coarse", "(7, 4)", "(7, 3)"),
        ("embedding.weight", "(51, 12)", "(50, 12)"),
    ):
        assert name in text
        assert theirs in text
        assert ours in text
    assert fingerprint(model) == before


def test_a_mismatched_tensor_is_named_where_a_hook_wants_it(saved: Saver) -> None:
    def read_first(
        module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: object
    ) -> None:
        state[prefix + "weight"] = state[prefix + "weight"].clone()

    model = lazy(lambda: nn.Linear(3, 2))
    model.register_load_state_dict_pre_hook(read_first)
    path = saved({"weight": torch.ones(5), "bias": torch.ones(2)})
    with pytest.raises(KeyError, match=r"weight: \(5,\) in the checkpoint, \(2, 3\) in the model"):
        dormant.load(model, path)
    assert dormant.is_lazy(model.bias)


@pytest.mark.parametrize("start", [lazy, eager])
def test_all_that_does_not_fit_is_listed_at_once(start: Start, saved: Saver) -> None:
    state = {**without(state_of(Plain), "layers.0.bias"), "coarse": torch.ones(7, 4)}
    path = saved({**state, "layers.0.bais": torch.ones(20)})
    model = start(Plain)
    before = fingerprint(model)
    with pytest.raises(KeyError) as caught:
        dormant.load(model, path, missing="error")
    blocks = [block.split() for block in caught.value.args[0].split(":\n")]
    assert blocks[1][0] == "layers.0.bias"
    assert blocks[2][0] == "layers.0.bais"
    assert blocks[3][0] == "coarse:"
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("theirs", "ours", "rename"),
    [
        ("module.", "", {"module.": ""}),
        ("module._orig_mod.", "", {"module._orig_mod.": ""}),
        ("", "inner.", {"": "inner."}),
        ("model.", "inner.", {"model.": "inner."}),
    ],
)
def test_a_prefix_that_would_help_is_proposed(
    theirs: str, ours: str, rename: dict[str, str], saved: Saver
) -> None:
    def build() -> nn.Module:
        return nn.ModuleDict({"inner": Plain()}) if ours else Plain()

    state = state_of(Plain)
    path = saved({theirs + name: tensor for name, tensor in state.items()})
    model = lazy(build)
    with pytest.raises(KeyError) as caught:
        dormant.load(model, path)
    count = len(state)
    assert f"{count} of {count} names match with rename={rename!r}." in caught.value.args[0]
    dormant.load(model, path, rename=rename, missing="error")
    expected = {ours + name: tensor for name, tensor in state.items()}
    assert_same_model(eager_loaded(build, expected), model)


def test_no_prefix_is_proposed_where_none_would_help(saved: Saver) -> None:
    path = saved({"a.weight": torch.ones(1), "b.running_mean": torch.ones(1), "c": torch.ones(1)})
    with pytest.raises(KeyError) as caught:
        dormant.load(lazy(Plain), path)
    assert "fit with" not in caught.value.args[0]


def test_no_prefix_is_proposed_where_several_would_help(saved: Saver) -> None:
    def build() -> nn.Module:
        return nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])

    path = saved({"head.weight": torch.ones(1, 1)})
    with pytest.raises(KeyError) as caught:
        dormant.load(lazy(build), path)
    assert "fit with" not in caught.value.args[0]


def test_thousands_of_names_are_compared_within_seconds() -> None:
    theirs = [f"h.{layer}.w{part}.weight" for layer in range(1500) for part in range(4)]
    ours = [f"layers.{layer}.v{part}.weight" for layer in range(1500) for part in range(4)]
    begin = time.process_time()
    assert renamed_prefix(theirs, ours) == ""
    assert time.process_time() - begin < 10  # each with each would take a minute


def test_names_are_printed_so_that_a_terminal_does_not_obey_them(saved: Saver) -> None:
    with pytest.raises(KeyError) as caught:
        dormant.load(lazy(Plain), saved({"a\x1b[2J\u202e\nb": torch.ones(1)}))
    assert "\n  a\\x1b[2J\\u202e\\nb\n" in caught.value.args[0]


def test_mismatched_tensors_can_be_initialized(saved: Saver) -> None:
    state = {**state_of(Plain), "embedding.weight": torch.ones(51, 12)}
    model = lazy(Plain)
    dormant.load(model, saved(state), mismatched="init")
    rest = without(state, "embedding")
    assert_same_model(eager_loaded(Plain, rest, strict=False), model)


def test_names_are_mapped(saved: Saver) -> None:
    state = state_of(Plain)
    renamed = {name: tensor for name, tensor in state.items() if name != "coarse"}
    renamed["other.name"] = state["coarse"]
    model = lazy(Plain)
    dormant.load(model, saved(renamed), rename={"other.name": "coarse"})
    assert_same_model(eager_loaded(Plain, state), model)


def test_prefixes_are_mapped(saved: Saver) -> None:
    state = state_of(Plain)
    renamed = {
        name.replace("layers.", "blocks.") if name.startswith("layers.") else name: tensor
        for name, tensor in state.items()
    }
    model = lazy(Plain)
    dormant.load(model, saved(renamed), rename={"blocks.": "layers."})
    assert_same_model(eager_loaded(Plain, state), model)


def test_a_prefix_is_taken_away_and_put_before(saved: Saver) -> None:
    state = state_of(Plain)
    model = lazy(Plain)
    path = saved({f"module.{name}": tensor for name, tensor in state.items()})
    dormant.load(model, path, rename={"module.": ""})
    assert_same_model(eager_loaded(Plain, state), model)

    def build() -> nn.Module:
        return nn.ModuleDict({"inner": Plain()})

    wrapped = lazy(build)
    dormant.load(wrapped, saved(state), rename={"": "inner."})
    expected = {f"inner.{name}": tensor for name, tensor in state.items()}
    assert_same_model(eager_loaded(build, expected), wrapped)


def test_a_function_renames(saved: Saver) -> None:
    state = state_of(Nested)
    model = lazy(Nested)
    path = saved({name.upper(): tensor for name, tensor in state.items()})
    names = {name.upper(): name for name in state}
    dormant.load(model, path, rename=names.__getitem__)
    assert_same_model(eager_loaded(Nested, state), model)


def test_two_tensors_renamed_to_one_name_are_refused(saved: Saver) -> None:
    state = state_of(Plain)
    path = saved({**state, "other": torch.ones(7, 3)})
    model = lazy(Plain)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="coarse"):
        dormant.load(model, path, rename={"other": "coarse"})
    assert fingerprint(model) == before


# Ties


@pytest.mark.parametrize("absent", ["head.weight", "embedding.weight"])
@pytest.mark.parametrize("start", [lazy, eager])
def test_a_tied_tensor_needs_one_of_its_names(absent: str, start: Start, saved: Saver) -> None:
    state = state_of(Tied)
    one_name = without(state, absent)
    model = start(Tied)
    dormant.load(model, saved(one_name), missing="error")
    assert model.head.weight is model.embedding.weight
    assert_same_model(eager_loaded(Tied, state), model)


def test_tied_names_may_both_be_there_with_one_value(saved: Saver) -> None:
    state = state_of(Tied)
    assert torch.equal(state["head.weight"], state["embedding.weight"])
    model = lazy(Tied)
    dormant.load(model, saved(state))
    assert_same_model(eager_loaded(Tied, state), model)


@pytest.mark.parametrize("start", [lazy, eager])
def test_tied_names_with_different_values_are_refused(start: Start, saved: Saver) -> None:
    state = state_of(Tied)
    state["head.weight"] = state["head.weight"].clone()
    state["head.weight"][3, 4] += 1
    path = saved(state)
    model = start(Tied)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"(?s)head\.weight.*embedding|embedding.*head\.weight"):
        dormant.load(model, path)
    assert fingerprint(model) == before


def test_a_tied_tensor_with_neither_name_is_missing_once(saved: Saver) -> None:
    state = without(state_of(Tied), "head", "embedding")
    model = lazy(Tied)
    report = dormant.load(model, saved(state))
    assert report.count("initialized") == 1
    assert_same_model(eager_loaded(Tied, state, strict=False), model)


# Several checkpoints


def test_checkpoints_are_taken_together_in_order(saved: Saver) -> None:
    state = state_of(Plain)
    base, adapter = without(state, "layers"), {k: state[k] for k in state if "layers" in k}
    model = lazy(Plain)
    dormant.load(model, [saved(base), adapter], missing="error")
    assert_same_model(eager_loaded(Plain, state), model)


def test_a_later_checkpoint_replaces_what_an_earlier_one_gave(saved: Saver) -> None:
    base, later = state_of(Plain, 1), {"coarse": state_of(Plain, 2)["coarse"]}
    model = lazy(Plain)
    dormant.load(model, [saved(base), saved(later)])
    assert_same_model(eager_loaded(Plain, {**base, **later}), model)


def saved_differences(folder: Path, differences: dict[str, torch.Tensor]) -> Path:
    """A set of one part as LLaMA2-Accessory names it."""
    folder.mkdir()
    torch.save(differences, folder / "consolidated.00-of-01.model-diff.pth")
    return folder


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("start", [lazy, eager])
def test_differences_are_added_to_what_came_before(
    start: Start, opened: bool, saved: Saver, tmp_path: Path
) -> None:
    base, other = state_of(Plain, 1), state_of(Plain, 2)
    differences = {name: other[name] for name in ("layers.0.weight", "coarse")}
    paths = [saved(base), saved_differences(tmp_path / "tuned", differences)]
    checkpoints = [dormant.open_checkpoint(path) if opened else path for path in paths]
    model = start(Plain)
    dormant.load(model, checkpoints)
    expected = {name: base[name] + other[name] for name in differences}
    assert_same_model(eager_loaded(Plain, {**base, **expected}), model)


def test_base_adapter_and_differences_in_order(saved: Saver, tmp_path: Path) -> None:
    state, changes = state_of(Plain, 1), state_of(Plain, 2)
    adapter = {name: tensor for name, tensor in state.items() if name.startswith("scales")}
    base = without(state, "scales")
    differences = {"scales.0": changes["scales.0"], "frozen": changes["frozen"]}
    model = lazy(Plain)
    tuned = saved_differences(tmp_path / "tuned", differences)
    dormant.load(model, [saved(base), saved(adapter), tuned], missing="error")
    expected = {name: state[name] + changes[name] for name in differences}
    assert_same_model(eager_loaded(Plain, {**state, **expected}), model)
