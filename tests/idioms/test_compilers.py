"""Tracers, compilers and functional transforms that are handed a lazy model."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import dormant
from compare import assert_same_bits, build_both, compare


class Net(nn.Module):
    """Two layers, a tie, and a table that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 6)
        self.third = nn.Linear(6, 8)
        self.third.weight = self.first.weight
        self.register_buffer("table", torch.arange(6).float().cos(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x).relu()) + self.table)


def batch() -> torch.Tensor:
    return torch.linspace(-1, 1, 18).view(3, 6)


def script(model: nn.Module) -> Any:
    return torch.jit.script(model)


def trace(model: nn.Module) -> Any:
    return torch.jit.trace(model, batch())


def functional(model: nn.Module) -> Any:
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    return lambda x: torch.func.functional_call(model, (parameters, buffers), (x,))


COMPILERS: dict[str, Callable[[nn.Module], Any]] = {
    "fx": fx.symbolic_trace,
    "make_fx": lambda m: make_fx(functional(m))(batch()),
    "export": lambda m: torch.export.export(m, (batch(),)).module(),
    "export_strict": lambda m: torch.export.export(m, (batch(),), strict=True).module(),
    "compile": lambda m: torch.compile(m, backend="eager"),
    "compile_aot": lambda m: torch.compile(m, backend="aot_eager"),
    "script": script,
    "trace": trace,
    "functional_call": functional,
}


@pytest.mark.parametrize("when", ["used while lazy", "materialized before", "materialized after"])
@pytest.mark.parametrize("name", COMPILERS)
def test_a_compiled_lazy_model_computes_what_eager_does(name: str, when: str) -> None:
    torch.compiler.reset()
    eager, lazy = build_both(Net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if when == "materialized before":
            dormant.materialize(lazy)
        expected, got = COMPILERS[name](eager), COMPILERS[name](lazy)
        if when == "materialized after":
            dormant.materialize(lazy)
        assert_same_bits(expected(batch()), got(batch()))
    dormant.materialize(lazy)
    for key, parameter in eager.named_parameters():
        assert_same_bits(parameter, lazy.get_parameter(key), key)


def test_symbolic_tracing_reads_nothing() -> None:
    _, lazy = build_both(Net)
    traced = fx.symbolic_trace(lazy)
    assert dormant.is_lazy(lazy.first.weight)
    assert traced.first.weight is lazy.first.weight
    assert len(list(traced.graph.nodes)) > 4


def test_a_graph_module_is_built_and_changed_inside_the_context() -> None:
    def build() -> nn.Module:
        model = Net()
        traced = fx.symbolic_trace(model)
        for node in traced.graph.nodes:
            if node.target is torch.relu or node.target == "relu":
                node.target = "sigmoid"
        traced.recompile()
        return traced

    eager, lazy = build_both(build)
    assert dormant.is_lazy(lazy.first.weight)
    dormant.materialize(lazy)
    assert_same_bits(eager(batch()), lazy(batch()))


@pytest.mark.parametrize("name", ["script", "trace"])
def test_a_model_scripted_inside_the_context(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eager, lazy = build_both(lambda: COMPILERS[name](Net()))
        dormant.materialize(lazy)
        assert_same_bits(eager(batch()), lazy(batch()))


def test_an_ensemble_of_lazy_models_under_vmap() -> None:
    def build() -> list[nn.Module]:
        return [nn.Linear(6, 2) for _ in range(3)]

    results = []
    for models in build_both(build):
        parameters, buffers = torch.func.stack_module_state(models)
        base = models[0]

        def call(p: Any, b: Any, x: torch.Tensor, base: nn.Module = base) -> torch.Tensor:
            return torch.func.functional_call(base, (p, b), (x,))

        results.append(torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, batch()))
    assert_same_bits(*results)


def test_functional_gradients_and_their_mapping_over_samples() -> None:
    results = []
    for model in build_both(Net):
        parameters = {name: p.detach() for name, p in model.named_parameters()}

        def loss(p: Any, x: torch.Tensor, model: nn.Module = model) -> torch.Tensor:
            return torch.func.functional_call(model, p, (x,)).square().sum()

        per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, batch())
        jacobian = torch.func.jacrev(loss)(parameters, batch())
        results.append([*per_sample.values(), *jacobian.values()])
    for expected, got in zip(*results, strict=True):
        assert_same_bits(expected, got)


def test_a_model_compiled_inside_the_context_runs_after_it() -> None:
    torch.compiler.reset()
    eager, lazy = build_both(lambda: torch.compile(Net(), backend="eager"))
    assert dormant.is_lazy(lazy.first.weight)
    dormant.materialize(lazy)
    assert_same_bits(eager(batch()), lazy(batch()))


def test_exporting_reads_nothing() -> None:
    _, lazy = build_both(Net)
    exported = torch.export.export(lazy, (batch(),))
    assert dormant.is_lazy(lazy.first.weight)
    assert dormant.is_lazy(exported.state_dict["first.weight"])


def test_a_pass_with_fake_tensors_reads_nothing() -> None:
    _, lazy = build_both(Net)
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = lazy(torch.ones(3, 6))
    assert isinstance(result, FakeTensor)
    assert result.shape == (3, 8)
    assert dormant.is_lazy(lazy.first.weight)


class Listing(TorchDispatchMode):
    """Notes what runs, and looks at what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = [t for t in args if isinstance(t, torch.Tensor) and t.is_floating_point()]
        result = function(*args, **(kwargs or {}))
        self.seen.append((str(function), sum(t.double().sum().item() for t in given)))
        return result


@pytest.mark.core
def test_a_dispatch_mode_sees_the_operators_and_values_of_eager() -> None:
    listings = []
    for model in build_both(Net):
        with Listing() as listing:
            model(batch()).sum().backward()
        listings.append(listing.seen)
    assert len(listings[0]) > 5
    assert [name for name, _ in listings[0]] == [name for name, _ in listings[1]]
    assert [value for _, value in listings[0]] == [value for _, value in listings[1]]


def test_the_operations_of_a_lazy_model_are_counted() -> None:
    counts = []
    for model in build_both(Net):
        with FlopCounterMode(display=False) as counter:
            model(batch())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_dispatch_mode_inside_the_context_over_lazy_tensors() -> None:
    def build() -> list[torch.Tensor]:
        before = torch.randn(5)
        with Listing() as listing:
            before.mul_(2)
            made = before + 1
        assert len(listing.seen) == 2
        return [before, made, torch.randn(3)]

    compare(build, expect_lazy=None)  # what a mode watches runs


# What torch.compile and torch.jit learn while a lazy tensor is alive stays for the whole process:
# each of these runs in one of its own. `keep` is alive until it is materialized.
IN_A_PROCESS = {
    "compiled afterwards": """
        torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
        functions = torch.overrides.get_testing_overrides()
        torch.jit.script(nn.Linear(2, 2))
        with dormant.lazy_init():
            from torch import tensor
        dormant.materialize(keep)
        assert not patches.installed() and tensor is torch.tensor
        assert torch.Tensor.tolist in functions and torch.Tensor.numpy in functions
        whole = lambda x: x + torch.tensor([1.0, 2.0]) + tensor([1.0, 2.0])
        assert compiled(whole)(torch.ones(2)).tolist() == [3.0, 5.0]
        of_the_class = lambda x: torch.Tensor.new_tensor(x, [1.0])
        assert compiled(of_the_class)(torch.ones(2)).tolist() == [1.0]
        assert torch.jit.script(jit_module.f)(torch.ones(2)).tolist() == [5.0, 7.0]
    """,
    "compiled meanwhile": """
        def fill(x):
            torch.manual_seed(0)
            return torch.nn.init.trunc_normal_(x, std=0.02)

        for whole in (
            lambda x: x + torch.tensor([1.0, 2.0]),
            lambda x: x + torch.as_tensor([1.0, 2.0]),
            lambda x: x + x.new_tensor([1.0, 2.0]),
        ):
            assert compiled(whole)(torch.ones(2)).tolist() == [2.0, 3.0]
        filled = torch.compile(fill, backend="eager")(torch.empty(8, 8))
        assert torch.equal(filled, fill(torch.empty(8, 8)))
        assert dormant.is_lazy(keep)
    """,
    "scripted meanwhile": """
        assert torch.jit.script(jit_module.f)(torch.ones(2)).tolist() == [5.0, 7.0]
        from torch.distributed.optim import ZeroRedundancyOptimizer
        import torchvision.models.optical_flow
        assert dormant.is_lazy(keep)
    """,
    "functions for workers": """
        import concurrent.futures, multiprocessing
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            assert torch.stack(list(pool.map(torch.tensor, [[1.0], [2.0]]))).tolist() == [[1], [2]]
            assert list(pool.map(torch.Tensor.tolist, [torch.ones(2)])) == [[1.0, 1.0]]
        assert dormant.is_lazy(keep)
    """,
}

SCRIPTED = """
import torch

def f(x: torch.Tensor) -> torch.Tensor:
    return x + torch.tensor([1.0, 2.0]) + torch.as_tensor([3.0, 4.0])
"""

AROUND = """
import sys
sys.path.insert(0, {folder!r})
import torch
from torch import nn
import dormant, jit_module
from dormant.recording import patches

def compiled(function):
    return torch.compile(function, backend="eager", fullgraph=True)

if __name__ == "__main__":
    with dormant.lazy_init():
        keep = nn.Linear(2, 2)
{code}
"""


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_compilers_and_workers_see_the_functions_of_torch(name: str, tmp_path: Path) -> None:
    (tmp_path / "jit_module.py").write_text(SCRIPTED)
    program = tmp_path / "program.py"
    code = textwrap.indent(textwrap.dedent(IN_A_PROCESS[name]), "    ")
    program.write_text(AROUND.format(folder=str(tmp_path), code=code))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", program],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
