"""Every function of torch.nn.init, and timm's truncated normals."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import init

from compare import compare

Init = Callable[[torch.Tensor], torch.Tensor]

LINEAR = (24, 40)
CONVOLUTION = (8, 6, 3, 3)

INITS: dict[str, tuple[Init, tuple[int, ...]]] = {
    "uniform_": (lambda t: init.uniform_(t, -0.1, 0.2), LINEAR),
    "normal_": (lambda t: init.normal_(t, 1.0, 0.02), LINEAR),
    "constant_": (lambda t: init.constant_(t, 0.3), LINEAR),
    "ones_": (init.ones_, LINEAR),
    "zeros_": (init.zeros_, LINEAR),
    "eye_": (init.eye_, LINEAR),
    "dirac_": (init.dirac_, CONVOLUTION),
    "dirac_groups": (lambda t: init.dirac_(t, groups=2), CONVOLUTION),
    "dirac_1d": (init.dirac_, (8, 6, 3)),
    "xavier_uniform_": (lambda t: init.xavier_uniform_(t, 1.4), LINEAR),
    "xavier_normal_": (init.xavier_normal_, CONVOLUTION),
    "kaiming_uniform_": (lambda t: init.kaiming_uniform_(t, a=5**0.5), CONVOLUTION),
    "kaiming_normal_": (lambda t: init.kaiming_normal_(t, mode="fan_out"), CONVOLUTION),
    "kaiming_tanh": (lambda t: init.kaiming_normal_(t, nonlinearity="tanh"), LINEAR),
    "orthogonal_": (init.orthogonal_, LINEAR),
    "orthogonal_tall": (lambda t: init.orthogonal_(t, gain=2.0), (40, 24)),
    "orthogonal_convolution": (init.orthogonal_, CONVOLUTION),
    "sparse_": (lambda t: init.sparse_(t, sparsity=0.3), LINEAR),
}

# orthogonal_ multiplies by the signs of a QR factor; sparse_ draws a permutation for each column.
# Both are opaque but nothing has to be known early.


@pytest.mark.core
@pytest.mark.parametrize("name", INITS)
def test_init_of_a_parameter(name: str) -> None:
    function, shape = INITS[name]

    def build() -> dict[str, torch.Tensor]:
        parameter = nn.Parameter(torch.empty(shape))
        function(parameter)
        return {"parameter": parameter, "after": torch.randn(3)}

    compare(build)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", [name for name in INITS if "orthogonal" not in name])
def test_init_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    function, shape = INITS[name]

    def build() -> list[torch.Tensor]:
        parameter = nn.Parameter(torch.empty(shape, dtype=dtype))
        function(parameter)
        return [parameter, torch.randn(3)]

    compare(build)


PRIVATE: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "uniform_": lambda t, g: init.uniform_(t, generator=g),
    "normal_": lambda t, g: init.normal_(t, generator=g),
    "xavier_uniform_": lambda t, g: init.xavier_uniform_(t, generator=g),
    "xavier_normal_": lambda t, g: init.xavier_normal_(t, generator=g),
    "kaiming_uniform_": lambda t, g: init.kaiming_uniform_(t, generator=g),
    "kaiming_normal_": lambda t, g: init.kaiming_normal_(t, generator=g),
    "trunc_normal_": lambda t, g: init.trunc_normal_(t, std=0.02, generator=g),
    "orthogonal_": lambda t, g: init.orthogonal_(t, generator=g),
    "sparse_": lambda t, g: init.sparse_(t, 0.3, generator=g),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_init_with_a_private_generator(name: str) -> None:
    def build() -> list[object]:
        generator = torch.Generator().manual_seed(5)
        return [PRIVATE[name](torch.empty(LINEAR), generator), generator, torch.randn(2)]

    compare(build)


# Mean, std, and bounds: far enough that one round suffices, and so near that several are drawn.
BOUNDS = [
    (0.0, 0.02, -2.0, 2.0),
    (0.0, 0.02, -0.04, 0.04),
    (0.0, 1.0, -2.0, 2.0),
    (0.0, 1.0, -6.0, 6.0),
    (0.0, 1.0, -5.7, 5.7),
    (0.0, 1.0, -5.77, 5.77),
    (1.0, 0.1, 0.0, 2.0),
    (1.0, 0.5, 0.0, 1.5),
    (0.0, 1.0, 0.5, 3.0),
    (3.0, 1.0, -2.0, 2.0),
    (0.0, 1e-6, -1.0, 1.0),
]


@pytest.mark.parametrize("size", [(1,), (15,), (4, 4), (33, 31), (128, 64)])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_truncated_normal(bounds: tuple[float, float, float, float], size: tuple[int]) -> None:
    def build() -> list[torch.Tensor]:
        return [init.trunc_normal_(nn.Parameter(torch.empty(size)), *bounds), torch.randn(3)]

    compare(build)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_truncated_normal_in_other_dtypes(
    bounds: tuple[float, float, float, float], dtype: torch.dtype
) -> None:
    def build() -> list[torch.Tensor]:
        tensor = torch.empty(37, 29, dtype=dtype)
        return [init.trunc_normal_(tensor, *bounds), torch.randn(3)]

    compare(build)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels_last"])
def test_truncated_normal_of_other_layouts(layout: str) -> None:
    def build() -> list[torch.Tensor]:
        base = torch.zeros(6, 8, 4, 4)
        tensor = {
            "transposed": base.transpose(0, 1),
            "sliced": base[:, ::2],
            "channels_last": base.to(memory_format=torch.channels_last),
        }[layout]
        init.trunc_normal_(tensor, std=0.02)
        init.trunc_normal_(base, std=1.0)
        return [base, tensor, torch.rand(3)]

    compare(build)


@pytest.fixture(scope="module")
def timm_layers() -> ModuleType:
    """timm's layers, imported as the tests of whole models import them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from libraries import prepare

    prepare()
    return importlib.import_module("timm.layers")


@pytest.mark.parametrize("name", ["trunc_normal_", "trunc_normal_tf_"])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_truncated_normal_of_timm(
    name: str, bounds: tuple[float, float, float, float], timm_layers: ModuleType
) -> None:
    function = getattr(timm_layers, name)

    def build() -> list[torch.Tensor]:
        return [function(nn.Parameter(torch.empty(32, 48)), *bounds), torch.randn(3)]

    compare(build)  # it maps a uniform through erfinv and clamps: nothing is ever redrawn


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_variance_scaling_of_timm(distribution: str, mode: str, timm_layers: ModuleType) -> None:
    scale = timm_layers.weight_init.variance_scaling_

    def build() -> list[torch.Tensor]:
        weight = nn.Parameter(torch.empty(32, 48))
        scale(weight, mode=mode, distribution=distribution)
        return [weight, torch.randn(3)]

    compare(build)


def test_initializing_a_parameter_twice_keeps_the_second() -> None:
    def build() -> nn.Module:
        model = nn.Linear(16, 16)
        for parameter in model.parameters():
            init.normal_(parameter)
            init.uniform_(parameter)
        return model

    compare(build)


@pytest.mark.core
def test_apply_with_an_initializing_function() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))

        def start(module: nn.Module) -> None:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
                init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                init.constant_(module.weight, 0.5)

        return model.apply(start)

    # BatchNorm's counter is made by torch.tensor, which holds a number that exists already
    compare(build, min_tensors=9, expect_lazy=0.99)
