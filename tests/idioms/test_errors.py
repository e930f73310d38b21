"""An error that eager construction raises is raised inside the context, at the same line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import dormant
from compare import assert_same_bits

MISTAKES: dict[str, Callable[[], Any]] = {
    "index_out_of_bounds": lambda: torch.randn(3)[3],
    "index_tensor_out_of_bounds": lambda: torch.randn(3)[torch.tensor([0, 5])],
    "negative_index_out_of_bounds": lambda: torch.randn(3)[torch.tensor([-4])],
    "index_put_out_of_bounds": lambda: torch.zeros(3).index_put_(
        (torch.tensor([7]),), torch.ones(1)
    ),
    "assignment_out_of_bounds": lambda: torch.zeros(4, 4).__setitem__((torch.tensor([9]), 0), 1.0),
    "index_select_out_of_bounds": lambda: torch.randn(3).index_select(0, torch.tensor([3])),
    "index_fill_out_of_bounds": lambda: torch.randn(3).index_fill_(0, torch.tensor([4]), 0.0),
    "index_add_out_of_bounds": lambda: torch.zeros(3).index_add_(
        0, torch.tensor([3]), torch.ones(1)
    ),
    "gather_out_of_bounds": lambda: torch.randn(3).gather(0, torch.tensor([3])),
    "scatter_out_of_bounds": lambda: torch.zeros(3).scatter_(0, torch.tensor([5]), 1.0),
    "take_out_of_bounds": lambda: torch.randn(3).take(torch.tensor([3])),
    "embedding_out_of_bounds": lambda: torch.nn.functional.embedding(
        torch.tensor([4]), torch.randn(4, 2)
    ),
    "lazy_index_out_of_bounds": lambda: torch.randn(3)[torch.arange(5)],
    "one_hot_too_few_classes": lambda: torch.nn.functional.one_hot(torch.arange(5), 3),
    "narrow_out_of_range": lambda: torch.randn(3).narrow(0, 2, 4),
    "select_out_of_range": lambda: torch.randn(3).select(0, 9),
    "shape_mismatch_add": lambda: torch.randn(3) + torch.randn(4),
    "shape_mismatch_copy": lambda: torch.empty(3).copy_(torch.randn(4)),
    "shape_mismatch_matmul": lambda: torch.randn(3, 4) @ torch.randn(3, 4),
    "shape_mismatch_cat": lambda: torch.cat([torch.randn(2, 3), torch.randn(2, 4)]),
    "shape_mismatch_stack": lambda: torch.stack([torch.randn(2), torch.randn(3)]),
    "view_of_the_wrong_size": lambda: torch.randn(6).view(4, 2),
    "view_of_a_transposed": lambda: torch.randn(3, 4).t().view(-1),
    "as_strided_out_of_bounds": lambda: torch.randn(4).as_strided((3,), (2,), 1),
    "negative_size": lambda: torch.randn(-1),
    "wrong_dimension": lambda: torch.randn(3).sum(2),
    "transpose_wrong_dimension": lambda: torch.randn(3).transpose(0, 1),
    "dtype_matmul": lambda: torch.randn(2, 2) @ torch.randn(2, 2, dtype=torch.float64),
    "dtype_cast_of_an_in_place_result": lambda: torch.ones(3, dtype=torch.int64).mul_(1.5),
    "dtype_of_index": lambda: torch.randn(3)[torch.tensor([0.5])],
    "dtype_bool_subtract": lambda: torch.ones(2).bool() - torch.ones(2).bool(),
    "dtype_normal_of_integers": lambda: torch.empty(3, dtype=torch.int64).normal_(),
    "dtype_out": lambda: torch.sin(torch.randn(3), out=torch.empty(3, dtype=torch.int32)),
    "dtype_view_as_complex": lambda: torch.view_as_complex(torch.randn(3)),
    "leaf_written_in_place": lambda: nn.Parameter(torch.randn(3)).add_(1),
    "leaf_view_written_in_place": lambda: nn.Parameter(torch.randn(3))[0].fill_(1),
    "leaf_filled_at_random": lambda: nn.Parameter(torch.randn(3)).normal_(),
    "requires_grad_of_integers": lambda: nn.Parameter(torch.arange(3)),
    "expanded_written_in_place": lambda: torch.randn(1, 3).expand(4, 3).add_(torch.randn(4, 3)),
    "overlapping_normal": lambda: torch.zeros(1).expand(5).copy_(torch.ones(5)).normal_(),
    "partly_overlapping_write": lambda: (lambda t: t[1:].add_(t[:-1]))(torch.randn(6)),
    "std_negative": lambda: torch.empty(3).normal_(0, -1),
    "uniform_bounds_reversed": lambda: torch.empty(3).uniform_(2, 1),
    "bernoulli_probability": lambda: torch.empty(3).bernoulli_(1.5),
    "exponential_rate": lambda: torch.empty(3).exponential_(-1.0),
    "geometric_probability": lambda: torch.empty(3).geometric_(0.0),
    "random_bounds": lambda: torch.empty(3).random_(4, 2),
    "randint_bounds": lambda: torch.randint(5, 5, (2,)),
    "multinomial_too_many": lambda: torch.multinomial(torch.ones(3), 4),
    "normal_std_tensor_negative": lambda: torch.normal(torch.zeros(3), torch.full((3,), -1.0)),
    "bernoulli_tensor_probability": lambda: torch.bernoulli(torch.full((3,), 2.0)),
    "trunc_normal_wrong_rank": lambda: nn.init.xavier_normal_(torch.empty(3)),
    "eye_wrong_rank": lambda: nn.init.eye_(torch.empty(3)),
    "dirac_wrong_rank": lambda: nn.init.dirac_(torch.empty(3, 3)),
    "cholesky_of_an_indefinite_matrix": lambda: torch.linalg.cholesky(-torch.eye(3)),
    "inverse_of_a_singular_matrix": lambda: torch.linalg.inv(torch.zeros(3, 3)),
    "item_of_many": lambda: torch.randn(3).item(),
    "bool_of_many": lambda: bool(torch.randn(3)),
    "numpy_of_a_parameter": lambda: nn.Parameter(torch.randn(3)).numpy(),
    "numpy_of_bfloat16": lambda: torch.randn(3).bfloat16().numpy(),
    "load_state_dict_of_another_shape": lambda: nn.Linear(2, 3).load_state_dict(
        nn.Linear(3, 2).state_dict()
    ),
    "data_of_another_dtype": lambda: setattr(
        nn.Parameter(torch.randn(3)), "data", torch.zeros(3, dtype=torch.int32)
    ),
    "unknown_device": lambda: torch.zeros(3, device="nonsense"),
    "generator_of_another_device": lambda: torch.randn(3, generator=torch.Generator("meta")),
    "wrong_argument": lambda: torch.randn(3).normal_("a"),
    "padding_index_out_of_range": lambda: nn.Embedding(3, 2, padding_idx=5),
    "heads_do_not_divide": lambda: nn.MultiheadAttention(10, 3),
    "backward_of_a_leaf_without_grad": lambda: torch.randn(()).backward(),
    "detached_view_resized": lambda: nn.Parameter(torch.randn(4)).detach().resize_(8).view(3, 3),
}


def failure(mistake: Callable[[], Any]) -> BaseException:
    torch.manual_seed(0)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the kind is compared with eager's
        mistake()
    return caught.value


@pytest.mark.core
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MISTAKES)
def test_the_error_of_eager_is_raised_at_once(name: str) -> None:
    expected = failure(MISTAKES[name])
    with dormant.lazy_init():
        got = failure(MISTAKES[name])
        after = torch.ones(4)
    assert type(got) is type(expected), f"eager {expected!r}, lazily {got!r}"
    assert dormant.is_lazy(after)
    assert not dormant._C.recording()


def test_an_error_leaves_earlier_tensors_as_they_were() -> None:
    def build() -> list[torch.Tensor]:
        a, b = torch.randn(5), torch.randn(4)
        for wrong in (lambda: a.add_(b), lambda: a.copy_(b), lambda: a[torch.tensor([9])]):
            with pytest.raises((RuntimeError, IndexError)):
                wrong()
        b.mul_(2)
        return [a, b, torch.randn(3)]

    torch.manual_seed(0)
    expected = build()
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = build()
    for left, right in zip(expected, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


def test_an_exception_out_of_the_context_leaves_no_trace() -> None:
    class Stop(Exception):
        pass

    kept = []
    with pytest.raises(Stop), dormant.lazy_init(dtype=torch.float64):
        kept.append(torch.randn(3))
        raise Stop
    assert not dormant._C.recording()
    assert torch.get_default_dtype() is torch.float32
    assert not dormant.is_lazy(torch.ones(2))
    dormant.materialize(kept[0])
    assert kept[0].dtype is torch.float64


def test_a_subclass_that_computes_with_lazy_parts_is_told_to_materialize_them() -> None:
    with dormant.lazy_init():
        pair = TwoTensor(torch.randn(3), torch.randn(3))
    with pytest.raises(RuntimeError, match=r"__torch_dispatch__.*Next: call dormant.materialize"):
        pair * 2
    assert dormant.is_lazy(pair.a)
    dormant.materialize(pair)
    assert torch.equal((pair * 2).a, pair.a * 2)


@pytest.mark.parametrize("inside", [True, False])
def test_an_operator_of_another_library_gets_real_tensors(inside: bool) -> None:
    with torch.library._scoped_library("dormant_test", "FRAGMENT") as library:
        library.define("pointer_is_set(Tensor x) -> bool")
        library.impl("pointer_is_set", lambda x: x.untyped_storage().data_ptr() != 0, "CPU")
        with dormant.lazy_init():
            lazy = torch.randn(4)
            if inside:
                assert torch.ops.dormant_test.pointer_is_set(lazy)
                assert dormant._C.value_reads() == {"dormant_test::pointer_is_set": 16}
        assert torch.ops.dormant_test.pointer_is_set(lazy)
        assert not dormant.is_lazy(lazy)
