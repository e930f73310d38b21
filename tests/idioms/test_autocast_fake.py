"""Inside autocast, fake tensors, torch.device and other modes, the mode still wins."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dormant
from compare import assert_same_bits, compare

Tensors = list[torch.Tensor]


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_the_dtype_of_recorded_mathematics(dtype: torch.dtype) -> None:
    def build() -> Tensors:
        a, b = torch.randn(6, 6), torch.randn(6, 6)
        with torch.autocast("cpu", dtype=dtype):
            product = a @ b
            inside = torch.randn(3, 6)
            mixed = torch.cat([product, inside.to(dtype)])
            full = torch.nn.functional.softmax(product, -1)
            with torch.autocast("cpu", enabled=False):
                exact = a @ b
        assert product.dtype is dtype
        return [a, b, product, inside, mixed, full, exact]

    compare(build, expect_lazy=None)  # what autocast casts runs at once, so that its rules hold


def test_a_model_built_inside_autocast_is_lazy() -> None:
    def build() -> nn.Module:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return nn.TransformerEncoderLayer(16, 2, 32)

    compare(build)


@pytest.mark.core
def test_a_context_opened_inside_autocast() -> None:
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.randn(4, 4) @ torch.randn(4, 4)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16), dormant.lazy_init():
        lazy = torch.randn(4, 4) @ torch.randn(4, 4)
    dormant.materialize(lazy)
    assert_same_bits(expected, lazy)


def test_materializing_inside_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    expected = torch.randn(4, 4) @ torch.randn(4, 4)
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = torch.randn(4, 4) @ torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dormant.materialize(lazy)
    assert_same_bits(expected, lazy)


@pytest.mark.core
def test_a_fake_mode_inside_the_context_gives_fake_tensors() -> None:
    with dormant.lazy_init():
        real = torch.zeros(3)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = torch.randn(4) + 1
            layer = nn.Linear(3, 3)
        after = torch.ones(3)
    assert isinstance(fake, FakeTensor)
    assert isinstance(layer.weight, FakeTensor)
    assert not dormant.is_lazy(fake)
    assert dormant.is_lazy(real)
    assert dormant.is_lazy(after)
    dormant.materialize([real, after])
    assert after.tolist() == [1, 1, 1]


def test_a_context_inside_a_fake_mode_gives_fake_tensors() -> None:
    with FakeTensorMode(), dormant.lazy_init():
        fake = torch.randn(4).mul_(2)
    assert isinstance(fake, FakeTensor)
    assert fake.shape == (4,)


@pytest.mark.core
def test_the_meta_device_inside_the_context_stays_meta() -> None:
    def build() -> nn.Module:
        first = nn.Linear(3, 3)
        with torch.device("meta"):
            second = nn.Linear(3, 3)
        second.weight.data.add_(1)
        return nn.ModuleList([first, second])

    compare(build)


def test_a_meta_tensor_becomes_a_lazy_one_by_empty_like() -> None:
    def build() -> Tensors:
        meta = torch.empty(3, 4, device="meta")
        return [torch.empty_like(meta, device="cpu").normal_(), torch.zeros_like(meta)]

    compare(build)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_cpu_device_context_changes_nothing(device: str | torch.device) -> None:
    def build() -> nn.Module:
        with torch.device(device):
            return nn.Linear(3, 3)

    compare(build)


def test_a_default_device_set_inside_is_used() -> None:
    def build() -> Tensors:
        torch.set_default_device("meta")
        meta = torch.randn(3)
        torch.set_default_device(None)
        return [meta, torch.randn(3)]

    compare(build)


class Doubling(TorchFunctionMode):
    """Turns every ones into twos."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        return result.mul_(2) if function is torch.ones else result


class Counting(TorchDispatchMode):
    """Sees what runs below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_a_torch_function_mode_of_the_user_is_honored() -> None:
    def build() -> Tensors:
        with Doubling():
            return [torch.ones(3), torch.zeros(2)]

    compare(build)


def test_a_torch_dispatch_mode_of_the_user_does_not_break_values() -> None:
    def build() -> Tensors:
        with Counting() as counting:
            made = [torch.randn(20).mul_(2), torch.arange(3)]
        assert counting.calls > 0
        return made

    compare(build, expect_lazy=None)  # the mode is above the core: it may force real tensors


def test_deterministic_algorithms_fill_what_eager_fills() -> None:
    def build() -> Tensors:
        torch.use_deterministic_algorithms(True)
        try:
            empty = [torch.empty(5), torch.empty(3, dtype=torch.int64), torch.Tensor(4)]
            return [*empty, torch.randn(3).cumsum(0)]
        finally:
            torch.use_deterministic_algorithms(False)

    compare(build, expect_lazy=None)  # empty is filled with NaN, and the setting is ambient


def test_functional_transforms_over_lazy_tensors() -> None:
    def build() -> Tensors:
        a = torch.randn(4, 3)
        return [
            torch.func.vmap(lambda row: row * 2)(a),
            torch.func.grad(lambda x: x.square().sum())(a),
            torch.func.vmap(lambda row: row.sum())(a),
        ]

    compare(build, expect_lazy=None)  # mathematics under a transform runs at once


def test_stacked_module_state_of_an_ensemble() -> None:
    def build() -> list[object]:
        models = [nn.Linear(3, 2) for _ in range(3)]
        parameters, buffers = torch.func.stack_module_state(models)
        return [models, parameters, buffers]

    compare(build, expect_lazy=None)  # stacking parameters that require grad is mathematics


def test_random_operators_under_vmap() -> None:
    def build() -> Tensors:
        a = torch.zeros(4, 3)
        different = torch.func.vmap(lambda row: row + torch.randn(3), randomness="different")(a)
        return [different, torch.randn(2)]

    compare(build, expect_lazy=None)


def test_a_compiled_function_that_traces_lazy_tensors() -> None:
    with dormant.lazy_init():
        model = nn.Linear(3, 3)
    torch.manual_seed(0)
    exported = torch.export.export(model, (torch.ones(1, 3),))
    dormant.materialize(model)
    assert_same_bits(model(torch.ones(1, 3)), exported.module()(torch.ones(1, 3)))
