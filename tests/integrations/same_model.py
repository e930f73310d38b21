"""What a loaded model has to share with the one that its own library loads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from eager_load import assert_same_model

from compare import assert_same_bits

SEED = 31


def both(theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
    """The library's model and ours, from the same random numbers."""
    torch.manual_seed(SEED)
    expected = theirs()
    after = torch.get_rng_state()
    torch.manual_seed(SEED)
    got = ours()
    assert torch.equal(torch.get_rng_state(), after), "the generator is elsewhere"
    return expected, got


def assert_same(expected: Any, got: Any, *, memory: bool = True) -> None:
    """Fails unless both have the same class, tensors, ties, settings and modes."""
    assert type(got) is type(expected)
    assert_same_model(expected, got, memory=memory)
    left, right = expected.state_dict(), got.state_dict()
    assert list(left) == list(right)
    assert len(left) > 3
    for name, module in expected.named_modules():
        assert got.get_submodule(name).training == module.training, name
    for settings in ("config", "generation_config"):
        one, other = (getattr(model, settings, None) for model in (expected, got))
        assert _plain(one) == _plain(other), settings
    public = {name for name in vars(expected) if not name.startswith("_")}
    assert public == {name for name in vars(got) if not name.startswith("_")}


def assert_same_output(expected: Any, got: Any, inputs: Mapping[str, Any]) -> None:
    """Fails unless both compute the same bits, over memory that is equally aligned.

    Kernels may sum in another order where a weight shows the bytes of a file in place.
    """
    outputs = []
    for model in (copy.deepcopy(expected), copy.deepcopy(got)):
        torch.manual_seed(SEED)
        with torch.no_grad():
            outputs.append(model(**inputs))
    for number, (one, other) in enumerate(zip(*map(_tensors, outputs), strict=True)):
        assert_same_bits(one, other, f"output {number}")


def drop_keys(folder: Path, *beginnings: str) -> None:
    """Takes keys out of the safetensors files of a folder; each beginning has to take some."""
    found = set()
    for file in folder.glob("*.safetensors"):
        state = safetensors.torch.load_file(file)
        for name in list(state):
            for beginning in beginnings:
                if name.startswith(beginning):
                    del state[name]
                    found.add(beginning)
                    break
        safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    assert found == set(beginnings)


def _plain(settings: Any) -> Any:
    to_dict = getattr(settings, "to_dict", None)
    return dict(settings) if isinstance(settings, Mapping) else to_dict and to_dict()


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [value for value in values if isinstance(value, torch.Tensor)]
