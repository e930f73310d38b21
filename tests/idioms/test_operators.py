"""Every operator of PyTorch's own catalogue of operators, on inputs that are lazy themselves."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from compare import compare

pytest.importorskip("expecttest", reason="torch's catalogue of operators imports it")

from torch.testing._internal.common_methods_invocations import op_db

# Never written: eager's values mean nothing either.
UNWRITTEN = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"}
UNWRITTEN |= {"new_empty_strided", "resize_", "resize_as_"}
# A second and more for their smallest sample.
SLOW = {"linalg.lstsq", "pca_lowrank", "svd_lowrank", "nn.functional.scaled_dot_product_attention"}


def named(operators: list[Any]) -> list[Any]:
    return [
        pytest.param(op, id=".".join(filter(None, (op.name, op.variant_test_name))))
        for op in operators
        if op.name not in UNWRITTEN | SLOW and "jiterator" not in op.name  # those need a GPU
    ]


def dtype_of(operator: Any) -> torch.dtype:
    supported = operator.supported_dtypes("cpu")
    preferred = (torch.float32, torch.int64, torch.complex64, torch.bool, torch.float64)
    return next(dtype for dtype in (*preferred, *supported) if dtype in supported)


def call(operator: Any, function: Any) -> list[Any]:
    """Makes one sample's inputs and applies the operator to them."""
    samples = operator.sample_inputs("cpu", dtype_of(operator), requires_grad=False)
    sample = next(iter(samples), None)
    if sample is None:
        pytest.skip("the catalogue has no sample of this operator for the CPU")
    result = function(sample.input, *sample.args, **sample.kwargs)
    return [sample.input, sample.args, sample.kwargs, result]


def compare_with_eager(operator: Any, function: Any) -> None:
    def build() -> list[Any]:
        return call(operator, function)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Many samples are made by reading values (to keep zeros out, to sort), hence None.
        compare(build, expect_lazy=None, orders=("shuffled",), min_tensors=0, min_bytes=0)


@pytest.mark.parametrize("operator", named(op_db))
def test_operator(operator: Any) -> None:
    compare_with_eager(operator, operator)


@pytest.mark.parametrize("operator", named([op for op in op_db if op.inplace_variant]))
def test_operator_in_place(operator: Any) -> None:
    if operator.name == "float_power":
        pytest.skip("gives float64, which its own operand cannot hold")
    compare_with_eager(operator, operator.inplace_variant)
