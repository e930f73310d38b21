"""Building, materializing and reading from several threads."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import dormant

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))  # for the child process below

from compare import assert_same_bits


def in_threads(work: Any, count: int = 4) -> list[Any]:
    """Results of `work(i)`, each called in a thread of its own; raises what a thread raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = work(i)
        except BaseException as error:  # shown in the thread that runs the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def build_private(i: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    tensors = [torch.empty(50 + i, 20).normal_(generator=generator) for _ in range(20)]
    for tensor in tensors[::3]:
        tensor[5:].mul_(2)
    return [*tensors, torch.cat([t.flatten() for t in tensors])]


@pytest.mark.threads
@pytest.mark.core
def test_modules_built_in_threads() -> None:
    def lazily(i: int) -> list[torch.Tensor]:
        with dormant.lazy_init():
            return build_private(i)

    built = in_threads(lazily)
    assert all(dormant.is_lazy(t) for tensors in built for t in tensors)
    in_threads(lambda i: dormant.materialize(built[i]))
    for i, tensors in enumerate(built):
        for j, (left, right) in enumerate(zip(build_private(i), tensors, strict=True)):
            assert_same_bits(left, right, f"tensor {j} of thread {i}")


@pytest.mark.threads
def test_one_model_materialized_by_several_threads_at_once() -> None:
    with dormant.lazy_init():
        shared = build_private(0)
    in_threads(lambda i: [dormant.materialize(t) for t in shared[i:] + shared[:i]])
    for left, right in zip(build_private(0), shared, strict=True):
        assert_same_bits(left, right)


@pytest.mark.threads
def test_a_thread_started_inside_the_context_is_not_recorded() -> None:
    def build() -> list[torch.Tensor]:
        tensors = [torch.randn(4)]
        thread = threading.Thread(target=lambda: tensors.append(torch.ones(5)))
        thread.start()
        thread.join()
        return tensors

    with dormant.lazy_init():
        first, second = build()
    assert dormant.is_lazy(first)
    assert not dormant.is_lazy(second)


@pytest.mark.threads
def test_a_lazy_tensor_used_by_another_thread_is_materialized_there() -> None:
    torch.manual_seed(0)
    expected = torch.randn(100)
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = torch.randn(100)
    (total,) = in_threads(lambda _: lazy.sum() + lazy[3], count=1)
    assert_same_bits(expected.sum() + expected[3], total)
    assert_same_bits(expected, lazy)


def entangle(seed: int) -> list[torch.Tensor]:
    """Tensors whose histories read each other at many stages."""
    generator = torch.Generator().manual_seed(seed)
    choose = random.Random(seed)
    tensors = [torch.randn(500, generator=generator) for _ in range(12)]
    for _ in range(60):
        left, right = choose.choice(tensors), choose.choice(tensors)
        kind = choose.randrange(5)
        if kind == 0:
            left.add_(right)
        elif kind == 1:
            tensors.append(left * right)
        elif kind == 2:
            left[100:300].copy_(right[:200].clone())
        elif kind == 3:
            left.uniform_(generator=generator)
        else:
            tensors.append(torch.cat([left[:250], right[250:]]))
    return tensors


def touch_from_every_thread(seed: int, action: str) -> None:
    with dormant.lazy_init():
        lazy = entangle(seed)

    def work(i: int) -> None:
        order = list(lazy)
        random.Random(i).shuffle(order)
        for tensor in order:
            if action == "materialize":
                dormant.materialize(tensor)
            elif action == "read":
                tensor.sum().item()
            else:
                tensor.clone().add_(1)

    in_threads(work, count=8)
    for left, right in zip(entangle(seed), lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


@pytest.mark.threads
@pytest.mark.parametrize("action", ["materialize", "read", "clone"])
def test_entangled_tensors_touched_by_eight_threads(action: str) -> None:
    """What eager allows, reading from several threads, must neither crash nor change a value."""
    # A process of its own: a race would take the whole test run down.
    command = [sys.executable, "-X", "faulthandler", __file__, action]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout == "100 rounds\n"


if __name__ == "__main__":
    sys.setswitchinterval(1e-6)  # lets threads meet at more places
    for seed in range(100):
        touch_from_every_thread(seed, sys.argv[1])
    print("100 rounds")
