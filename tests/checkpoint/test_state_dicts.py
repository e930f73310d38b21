"""What people do to state dicts works on a checkpoint, and stays lazy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from written import STATE, write

import dormant
from compare import assert_same_bits
from dormant import _C


def compositions() -> dict[str, Any]:
    return {
        "a cast": lambda s: s["embed.weight"].to(torch.bfloat16),
        "a cast up": lambda s: s["layer.weight"].float(),
        "half": lambda s: s["embed.weight"].half(),
        "cat": lambda s: torch.cat([s["embed.weight"], s["layer.weight"].float()]),
        "cat of columns": lambda s: torch.cat([s["layer.weight"], s["layer.weight"]], dim=1),
        "stack": lambda s: torch.stack([s["layer.weight"], s["layer.weight"]]),
        "a chunk": lambda s: s["embed.weight"].chunk(3)[1].clone(),
        "split columns": lambda s: s["embed.weight"].split(5, dim=1)[2].contiguous(),
        "a slice": lambda s: s["embed.weight"][3:9, ::2].clone(),
        "a row": lambda s: s["embed.weight"][7].clone(),
        "a transpose": lambda s: s["embed.weight"].t().contiguous(),
        "permuted heads": lambda s: (
            s["layer.weight"].view(4, 2, 2, 16).transpose(1, 2).reshape(16, 16)
        ),
        "a view": lambda s: s["embed.weight"].view(25, 32),
        "a sum": lambda s: s["layer.bias"] * 2 + 1,
        "a scalar": lambda s: s["steps"].float(),
        "reversed rows": lambda s: s["embed.weight"].flip(0),
    }


@pytest.mark.parametrize("name", compositions())
def test_compositions_equal_eager(path: Path, name: str) -> None:
    compose = compositions()[name]
    with dormant.lazy_init():
        got = compose(dormant.open_checkpoint(path))
    assert dormant.is_lazy(got)
    dormant.materialize(got)
    assert_same_bits(compose(STATE), got)


def test_compositions_outside_the_context_stay_lazy(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    renamed = {f"model.{name}": t.to(torch.float16) for name, t in checkpoint.items()}
    renamed["model.both"] = torch.cat([checkpoint["embed.weight"], checkpoint["embed.weight"]])
    assert all(dormant.is_lazy(tensor) for tensor in renamed.values())
    dormant.materialize(renamed)
    for name, tensor in STATE.items():
        assert_same_bits(tensor.half(), renamed[f"model.{name}"], name)
    assert_same_bits(torch.cat([STATE["embed.weight"]] * 2), renamed["model.both"])


class Model(torch.nn.Module):
    """Takes STATE; its initialization runs a QR, which a profiler sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.Linear(16, 16)
        torch.nn.init.orthogonal_(self.layer.weight)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def eager_model(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model = Model()
    model.load_state_dict(state)
    return model.state_dict()


def test_a_lazy_module_stays_lazy_when_loaded(path: Path) -> None:
    with dormant.lazy_init():
        model = Model()
    model.load_state_dict(dormant.open_checkpoint(path))  # type: ignore[arg-type]
    assert all(dormant.is_lazy(p) for p in model.parameters())
    report = dormant.materialize(model)
    assert report.lazy_rate == 1.0
    for name, expected in eager_model(STATE).items():
        assert_same_bits(expected, model.state_dict()[name], name)


def test_a_real_module_takes_the_values(path: Path) -> None:
    model = Model()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    model.load_state_dict(dormant.open_checkpoint(path))  # type: ignore[arg-type]
    for name, expected in eager_model(STATE).items():
        got = model.state_dict()[name]
        assert got.data_ptr() == before[name]
        assert_same_bits(expected, got, name)


def test_a_module_can_be_given_the_tensors_themselves(path: Path) -> None:
    with torch.device("meta"):
        model = Model()
    model.load_state_dict(dormant.open_checkpoint(path), assign=True)  # type: ignore[arg-type]
    assert dormant.is_lazy(model.embed.weight)
    dormant.materialize(model)
    for name, expected in STATE.items():
        assert_same_bits(expected, model.state_dict()[name], name)


def test_ties_of_a_torch_file_survive(tmp_path: Path) -> None:
    weight = torch.randn(9, 4)
    file = write({"embed": weight, "head": weight}, tmp_path / "model.pt")
    state = dict(dormant.open_checkpoint(file))
    assert _C.storage_id(state["embed"]) == _C.storage_id(state["head"])
    report = dormant.materialize(state)
    assert report.storages == 1
    state["embed"].zero_()
    assert state["head"].count_nonzero() == 0


def test_tensors_of_torch_load_initialize_nothing_in_vain(tmp_path: Path) -> None:
    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(300, 300)  # above the size that recording copies
            torch.nn.init.orthogonal_(self.layer.weight)

    eager = Large().state_dict()
    file = write(eager, tmp_path / "model.pt")

    def decompositions(act: Any) -> int:
        with torch.profiler.profile() as profile:
            act()
        return sum(event.count for event in profile.key_averages() if "qr" in event.key)

    with dormant.lazy_init():
        initialized, loaded = Large(), Large()
    assert decompositions(lambda: dormant.materialize(initialized)) > 0

    def load() -> None:
        loaded.load_state_dict(torch.load(file, mmap=True))
        dormant.materialize(loaded)

    assert decompositions(load) == 0
    for name, expected in eager.items():
        assert_same_bits(expected, loaded.state_dict()[name], name)


# Which mapping of a file of torch.save is the state dict


@pytest.mark.parametrize("name", ["best_acc1", "loss", "rng_state"])
@pytest.mark.parametrize("first", [True, False])
def test_a_tensor_beside_the_state_dict_does_not_hide_it(
    name: str, first: bool, tmp_path: Path
) -> None:
    path = tmp_path / "training.pt"
    items = [("state_dict", STATE), (name, torch.tensor(76.1))]
    torch.save(dict(items[::-1] if first else items), path)
    checkpoint = dormant.open_checkpoint(path)
    assert list(checkpoint) == list(STATE)
    assert_same_bits(torch.tensor(76.1), checkpoint.extra[name], name)
    assert list(dormant.open_checkpoint(path, key="")) == [name]


def test_an_extra_state_of_tensors_is_no_state_dict(tmp_path: Path) -> None:
    extra = {"amax": torch.ones(1), "scale": torch.ones(1)}
    torch.save({**STATE, "_extra_state": extra, "a._extra_state": extra}, tmp_path / "model.pt")
    checkpoint = dormant.open_checkpoint(tmp_path / "model.pt")
    assert list(checkpoint) == list(STATE)
    assert set(checkpoint.extra) == {"_extra_state", "a._extra_state"}


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(1), "b": torch.ones(1), "model": STATE},
        {"model": STATE, "ema": STATE},
        {"loss": torch.ones(1), "model": {"w": torch.ones(1)}},
    ],
    ids=["two mappings", "two inside", "one tensor each"],
)
def test_two_mappings_that_may_be_the_state_dict_are_named(
    content: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"got 2: .*'model'.*Choose one: .*key='model'"):
        dormant.open_checkpoint(path)
    assert list(dormant.open_checkpoint(path, key="model")) == list(content["model"])
