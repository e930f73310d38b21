"""Every operator of PyTorch's own catalog of operators, on inputs that are lazy themselves."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch

from compare import compare

pytest.importorskip("expecttest", reason="torch's catalog of operators imports it")

from torch.testing._internal.common_methods_invocations import op_db

# Never written: eager's values mean nothing either.
UNWRITTEN = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"}
UNWRITTEN |= {"new_empty_strided", "resize_", "resize_as_"}
# Then those that take a second and more for their smallest sample.
EXCLUDED = UNWRITTEN | {
    "linalg.lstsq",
    "pca_lowrank",
    "svd_lowrank",
    "nn.functional.scaled_dot_product_attention",
}


def named(operators: list[Any], *dtypes: torch.dtype) -> list[Any]:
    """The operators, each with the first of `dtypes` that it supports."""
    cases = []
    for operator in operators:
        supported = operator.supported_dtypes("cpu")
        dtype = next((dtype for dtype in dtypes if dtype in supported), None)
        if operator.name in EXCLUDED or dtype is None:
            continue
        name = ".".join(filter(None, (operator.name, operator.variant_test_name)))
        cases.append(
            pytest.param(operator, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
        )
    return cases


def compare_with_eager(
    operator: Any,
    function: Any,
    dtype: torch.dtype,
    position: int,
    *,
    requires_grad: bool = False,
) -> None:
    """Compares a call on the sample at `position` of the catalog, or the last one before it."""

    def build() -> list[Any]:
        # sample_inputs() itself walks the stack of callers each time, which takes far longer
        samples = operator.sample_inputs_func(operator, "cpu", dtype, requires_grad)
        sample = list(itertools.islice(samples, position + 1))[-1]
        result = function(sample.input, *sample.args, **sample.kwargs)
        return [sample.input, sample.args, sample.kwargs, result]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Many samples are made by reading values (to keep zeros out, to sort), hence None.
        compare(build, expect_lazy=None, orders=("shuffled",), min_tensors=0, min_bytes=0)


# Eager's scalar keeps the storage of the unreduced losses, beyond what it needs; nothing sees that.
LEFT_OVER = {"mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy"}
EXCLUDED |= {f"nn.functional.{name}" for name in LEFT_OVER}

ON_CPU = [op for op in op_db if "jiterator" not in op.name and "cudnn" not in op.variant_test_name]
COMMON = (torch.float32, torch.int64, torch.complex64, torch.bool)


@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize(("operator", "dtype"), named(ON_CPU, *COMMON))
def test_operator(operator: Any, dtype: torch.dtype, position: int) -> None:
    compare_with_eager(operator, operator, dtype, position)


@pytest.mark.parametrize(("operator", "dtype"), named(ON_CPU, torch.bfloat16))
def test_operator_in_bfloat16(operator: Any, dtype: torch.dtype) -> None:
    compare_with_eager(operator, operator, dtype, 1)


IN_PLACE = [op for op in ON_CPU if op.inplace_variant and op.name != "float_power"]


@pytest.mark.parametrize(("operator", "dtype"), named(IN_PLACE, *COMMON))
def test_operator_in_place(operator: Any, dtype: torch.dtype) -> None:
    compare_with_eager(operator, operator.inplace_variant, dtype, 0)


DIFFERENTIABLE = [op for op in ON_CPU if op.supports_autograd]


@pytest.mark.parametrize(("operator", "dtype"), named(DIFFERENTIABLE, torch.float32))
def test_operator_with_its_graph(operator: Any, dtype: torch.dtype) -> None:
    compare_with_eager(operator, operator, dtype, 0, requires_grad=True)
