"""The tile engine: the bits of eager, bounded memory, and work that can be stopped."""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from child import in_child, sees_the_memory
from compare import assert_same_bits

pytestmark = pytest.mark.core

MIB = 1 << 20


class Block(nn.Module):
    """An embedding with a padding row, a linear layer and an orthogonal weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 65, padding_idx=2)
        self.linear = nn.Linear(65, 130)
        self.square = nn.Parameter(torch.empty(40, 40))
        nn.init.orthogonal_(self.square)


def eager_and_lazy(
    make: Callable[[], nn.Module] = Block,
) -> tuple[dict[str, torch.Tensor], nn.Module]:
    torch.manual_seed(4)
    eager = make().state_dict()
    torch.manual_seed(4)
    with dormant.lazy_init():
        return eager, make()


def test_a_report_says_how_each_tensor_came_to_life() -> None:
    eager, model = eager_and_lazy()
    report = dormant.materialize(model)
    ways = {tensor.names[0]: tensor.way for tensor in report.tensors}
    assert ways == {
        "embedding.weight": "tiles",
        "linear.weight": "tiles",
        "linear.bias": "tiles",
        "square": "replay",
    }
    assert (report.count_way("tiles"), report.count_way("replay")) == (3, 1)
    assert "3 computed in tiles, 1 replayed whole\nrandom numbers: " in str(report)
    assert report.random_path
    assert report.to_dict()["random_path"] == report.random_path
    for name, tensor in model.state_dict().items():
        assert_same_bits(eager[name], tensor)


def test_a_summary_says_which_code_will_draw() -> None:
    _, model = eager_and_lazy()
    found = dormant.summary(model)
    assert found.random_path
    assert f"random numbers: {found.random_path}" in " ".join(str(found).split())
    assert "random numbers" not in str(dormant.summary(nn.Linear(2, 2)))


def test_what_was_real_already_came_to_life_in_no_way() -> None:
    report = dormant.materialize(nn.Linear(2, 2))
    assert [tensor.way for tensor in report.tensors] == [None, None]
    assert "random numbers" not in str(report)


def test_a_budget_too_small_says_the_minimum_and_the_minimum_is_enough() -> None:
    eager, model = eager_and_lazy()
    with pytest.raises(ValueError, match="memory_budget=1 bytes is too small") as caught:
        dormant.materialize(model, memory_budget=1)
    found = re.search(r"the minimum for these tensors is (\d+)", str(caught.value))
    assert found is not None
    least = int(found[1])
    with pytest.raises(ValueError, match="too small"):
        dormant.materialize(model, memory_budget=least - 1)
    assert all(dormant.is_lazy(parameter) for parameter in model.parameters())
    dormant.materialize(model, memory_budget=least)
    for name, tensor in model.state_dict().items():
        assert_same_bits(eager[name], tensor)


def measured_in_child(code: str) -> dict[str, Any]:
    """Runs `code` in a new process and returns what it prints as JSON."""
    prelude = """
        import json, torch, dormant
        from dormant.reporting.memory import highest_resident_bytes, resident_bytes
        MIB = 1 << 20
        # What a process needs once is not the tensors' own: the code itself, the threads.
        with dormant.lazy_init():
            dormant.materialize(torch.nn.Linear(1000, 1000), dtype=torch.bfloat16)
    """
    return in_child(prelude, code)


def test_the_peak_of_a_model_in_bfloat16_is_its_own_size_and_little_more() -> None:
    found = measured_in_child("""
        with dormant.lazy_init():
            model = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096) for _ in range(8)])
        model.to(torch.bfloat16)
        before = resident_bytes()
        dormant.materialize(model)
        after = resident_bytes()
        print(json.dumps({
            "final": sum(p.nbytes for p in model.parameters()),
            "grown": after - before,
            "peak": highest_resident_bytes() - before,
        }))
    """)
    assert found["final"] >= 256 * MIB
    assert sees_the_memory(found)
    assert found["peak"] <= found["final"] + 48 * MIB


@pytest.mark.parametrize("dim", [0, 1])
def test_the_peak_of_a_shard_is_its_part_and_the_budget(dim: int) -> None:
    found = measured_in_child(f"""
        with dormant.lazy_init():
            shard = torch.randn(8192, 8192).chunk(8, {dim})[3].clone()
        before = resident_bytes()
        dormant.materialize(shard, memory_budget=4 * MIB)
        print(json.dumps({{"part": shard.nbytes, "peak": highest_resident_bytes() - before}}))
    """)
    assert found["part"] == 32 * MIB
    # The whole has 256 MiB; pages of code that runs for the first time count too.
    assert found["part"] - MIB <= found["peak"] <= found["part"] + (4 + 12) * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a storage is made whole")
def test_a_view_that_is_the_only_owner_of_its_storage_takes_its_part() -> None:
    found = measured_in_child("""
        def rows():
            return torch.nn.Parameter(torch.empty(8192, 4096).normal_()[5000:5500])
        torch.manual_seed(3)
        with dormant.lazy_init():
            view = rows()
        before = resident_bytes()
        dormant.materialize(view)
        peak = highest_resident_bytes() - before
        torch.manual_seed(3)
        eager = rows()
        print(json.dumps({
            "part": view.nbytes,
            "peak": peak,
            "equal": torch.equal(view, eager),
            "strides": [view.stride(), eager.stride()],
            "storage": [view.storage_offset(), view.untyped_storage().nbytes()],
        }))
    """)
    assert found["equal"]
    assert found["strides"][0] == found["strides"][1]
    assert found["storage"] == [0, found["part"]]
    assert found["part"] - MIB <= found["peak"] <= found["part"] + 16 * MIB  # of 128 MiB


@pytest.mark.parametrize("owner", ["the whole", "another view", "the storage", "a base"])
def test_a_storage_that_something_else_refers_to_is_made_whole(owner: str) -> None:
    def build() -> tuple[torch.Tensor, object]:
        whole = torch.empty(1000, 1000).normal_()
        part = whole[100:110]
        other = {
            "the whole": whole,
            "another view": whole[500:].detach(),
            "the storage": whole.untyped_storage(),
            "a base": None,
        }[owner]
        return (part if owner == "a base" else part.detach()), other

    torch.manual_seed(3)
    with dormant.lazy_init():
        lazy, other = build()
    dormant.materialize(lazy)
    torch.manual_seed(3)
    eager, _ = build()
    del other
    whole = [tensor.as_strided((1000, 1000), (1000, 1), 0) for tensor in (eager, lazy)]
    assert_same_bits(whole[0], whole[1])


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="asks glibc to give memory back; a sanitizer keeps it",
)
def test_what_a_replay_needed_besides_its_tensors_goes_back_to_the_system() -> None:
    found = measured_in_child("""
        with dormant.lazy_init():
            # Each sum leaves a hole of its own size between two final tensors.
            sums = [torch.randn(1000, 100 + i).cumsum(0) for i in range(160)]
        before = resident_bytes()
        report = dormant.materialize(sums)
        print(json.dumps({
            "final": sum(tensor.nbytes for tensor in sums),
            "replayed": report.count_way("replay"),
            "grown": resident_bytes() - before,
        }))
    """)
    assert found["replayed"] == 160
    assert sees_the_memory(found)
    assert found["grown"] <= found["final"] + 16 * MIB


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_leaves_tensors_lazy_and_they_can_be_materialized_again() -> None:
    with dormant.lazy_init():
        model = nn.Sequential(*[nn.Linear(3000, 3000, bias=False) for _ in range(12)])
    started = threading.Event()
    raised = threading.Event()

    def interrupt() -> None:
        started.wait(10)
        signal.raise_signal(signal.SIGINT)
        raised.set()

    def on_step(done: int, total: int) -> None:
        started.set()
        deadline = time.monotonic() + 10
        while not raised.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)  # the work outlasts the signal, however fast the machine

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            dormant.materialize(model, progress=on_step)
            pytest.fail("the signal came too late")
    finally:
        thread.join()
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    assert not dormant.is_lazy(model)
    assert all(bool((layer.weight != 0).any()) for layer in model)


@pytest.mark.parametrize("join", [torch.cat, torch.stack, lambda parts: torch.cat(parts, dim=1)])
def test_a_tensor_of_many_parts_is_made_in_tiles(join: Any, tmp_path: Path) -> None:
    def build() -> torch.Tensor:
        torch.manual_seed(2)
        made: torch.Tensor = join([torch.empty(160, 90).uniform_(i, i + 1) for i in range(500)])
        return made.to(torch.bfloat16)

    expected = build()
    with dormant.lazy_init():
        lazy = build()
    # Whole, the parts would take 29 MB; each keeps its place in the generator's stream.
    dormant.save({"w": lazy}, tmp_path / "w.pt", memory_budget="14MiB", progress=False)
    assert_same_bits(expected, torch.load(tmp_path / "w.pt")["w"], "saved")
    dormant.materialize(lazy)
    assert_same_bits(expected, lazy, "materialized")
