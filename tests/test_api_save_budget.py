"""`dormant.save(memory_budget=...)`: the bound holds, whatever the tensors are made from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from child import in_child
from compare import assert_same_bits
from dormant.quantization.statistics import compute_offsets

MIB = 1 << 20
# What a process takes besides: threads that start, code that runs for the first time, and what the
# C library keeps of freed memory.
FIXED = 16 * MIB
PRELUDE = """
    import json, sys, torch, dormant
    from dormant.reporting.memory import highest_resident_bytes, resident_bytes

    torch.set_num_threads(8)

    def state(rows, columns):
        with dormant.lazy_init():
            normal = torch.empty(rows, columns).normal_()
            kinds = {
                "in order": normal,
                "cast": torch.empty(rows, columns).uniform_().to(torch.bfloat16),
                "transposed": torch.empty(rows, columns).normal_().t(),
                "batch transposed": torch.empty(2, rows // 2, columns).normal_().transpose(1, 2),
            }
        return kinds

    def save(tensors, budget):
        dormant.save(tensors, sys.argv[1] + "/model.safetensors", memory_budget=budget)
"""


@pytest.mark.parametrize("budget", [2 * MIB, 48 * MIB])
def test_the_peak_stays_under_the_start_and_the_budget(budget: int, tmp_path: Path) -> None:
    prelude = PRELUDE.replace("sys.argv[1]", repr(str(tmp_path)))
    found = in_child(
        prelude,
        f"""
        save(state(64, 64), None)
        real = torch.zeros(4096, 2048).t()
        tensors = {{**state(4096, 2048), "gathered": real}}
        before = resident_bytes()
        save(tensors, {budget})
        lazy = sum(map(dormant.is_lazy, tensors.values())) == len(tensors) - 1
        print(json.dumps({{"grown": highest_resident_bytes() - before, "lazy": lazy}}))
    """,
    )
    assert found["lazy"]
    assert found["grown"] <= budget + FIXED
    (tmp_path / "model.safetensors").unlink()


def test_without_a_bound_tensors_take_little_memory_too(tmp_path: Path) -> None:
    prelude = PRELUDE.replace("sys.argv[1]", repr(str(tmp_path))).replace(
        "threads(8)", "threads(2)"
    )
    found = in_child(
        prelude,
        """
        save(state(64, 64), None)
        tensors = state(8192, 4096)
        before = resident_bytes()
        save(tensors, None)
        print(json.dumps({"grown": highest_resident_bytes() - before}))
    """,
    )
    assert found["grown"] < 64 * MIB  # one of these tensors has 128
    (tmp_path / "model.safetensors").unlink()


def in_order() -> torch.Tensor:
    return torch.empty(300, 500).normal_()


def turned() -> torch.Tensor:
    return torch.empty(300, 500).normal_().t()


def replayed() -> torch.Tensor:
    return torch.empty(300, 500).normal_().cumsum(0)


def view_of_replayed() -> torch.Tensor:
    return torch.empty(300, 500).normal_().cumsum(0)[:, ::2]


def conjugated() -> torch.Tensor:
    return torch.empty(300, 500, dtype=torch.complex64).normal_().conj()


@pytest.mark.parametrize("build", [in_order, turned, replayed, view_of_replayed, conjugated])
def test_a_budget_too_small_names_the_least_that_works(
    build: Callable[[], torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = build()
    torch.manual_seed(0)
    eager = build().resolve_conj().contiguous()
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="save: memory_budget=1 bytes is too small") as caught:
        dormant.save({"tensor": lazy}, path, memory_budget=1)
    found = re.search(r"the minimum for these tensors is (\d+)", str(caught.value))
    assert found is not None
    least = int(found[1])
    with pytest.raises(ValueError, match="too small"):
        dormant.save({"tensor": lazy}, path, memory_budget=least - 1)
    assert not list(tmp_path.iterdir())
    assert dormant.is_lazy(lazy)
    dormant.save({"tensor": lazy}, path, memory_budget=least)
    assert_same_bits(eager, safetensors.torch.load_file(path)["tensor"], "tensor")
    assert dormant.is_lazy(lazy)


def test_the_budget_is_checked_before_the_first_of_several_files(tmp_path: Path) -> None:
    with dormant.lazy_init():
        state = {"a": torch.empty(1000).normal_(), "b": replayed()}
    steps: list[int] = []
    with pytest.raises(ValueError, match="only be replayed whole"):
        dormant.save(
            state,
            tmp_path,
            max_shard_size="10KB",
            memory_budget=100_000,
            progress=lambda done, total: steps.append(done),
        )
    assert steps == []
    assert not list(tmp_path.iterdir())


def test_real_tensors_need_no_budget(tmp_path: Path) -> None:
    state = {"plain": torch.randn(100, 70), "strided": torch.randn(100, 70).t()}
    dormant.save(state, tmp_path / "model.safetensors", memory_budget=1)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, tensor in state.items():
        assert_same_bits(tensor.contiguous(), loaded[name], name)


@pytest.mark.parametrize(
    ("budget", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", ValueError)]
)
def test_what_is_no_budget_is_an_error(
    budget: object, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error, match="save: memory_budget"):
        dormant.save({}, tmp_path, memory_budget=budget)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def nested() -> torch.nn.Module:
    """A lazy model with nf4 weights, whose offsets a state dict has as text."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    with dormant.lazy_init():
        model = torch.nn.Sequential(torch.nn.Linear(512, 640), torch.nn.Linear(640, 256))
    dormant.quantize(model, "nf4", skip=())
    return model


def test_offsets_of_nested_statistics_are_computed_with_progress(nested: torch.nn.Module) -> None:
    steps: list[tuple[int, int]] = []
    compute_offsets(nested, progress=lambda *step: steps.append(step))
    nbytes = 4 * (512 * 640 + 640 * 256)
    assert steps == sorted(steps)
    assert steps[-1] == (nbytes, nbytes)
    offsets = [layer.weight.quant_state.offset for layer in nested]  # type: ignore[union-attr]
    assert not any(map(dormant.is_lazy, offsets))
    assert all(dormant.is_lazy(layer.weight) for layer in nested)  # type: ignore[arg-type]
    steps.clear()
    compute_offsets(nested, progress=lambda *step: steps.append(step))
    assert steps == []


def test_a_quantized_model_is_saved_under_a_budget_below_its_largest_weight(
    nested: torch.nn.Module, tmp_path: Path
) -> None:
    packed = 512 * 640 // 2
    with pytest.raises(ValueError, match=r"memory_budget=\d+ bytes is too small"):
        dormant.save(nested, tmp_path / "model.safetensors", memory_budget=packed // 8)
    assert not list(tmp_path.iterdir())
    dormant.save(nested, tmp_path / "bounded.safetensors", memory_budget=packed // 2)
    dormant.save(nested, tmp_path / "unbounded.safetensors")
    bounded, unbounded = sorted(tmp_path.iterdir())
    assert bounded.read_bytes() == unbounded.read_bytes()
    assert dormant.is_lazy(nested)
