"""Programs that once differed from eager, found by fuzz/programs.py and made smaller."""

from __future__ import annotations

import pytest

from random_programs.check import check
from random_programs.program import parse

FOUND = {
    "set_makes_a_storage_as_large_as_it_needs": """
        with lazy_init():
            v0 = torch.arange(1)
            v0.set_(torch.ones(1).untyped_storage(), 0, (1,), (1,))
        """,
    "a_storage_that_set_has_grown_is_read": """
        with lazy_init():
            v0 = torch.ones(1, dtype=torch.bool)
            v1 = torch.ones(1, dtype=torch.int64)
            v1.set_(v0.untyped_storage(), 0, (1,), (1,))
            v1.fill_(3)
            v2 = torch.hstack([torch.ones(1), v1])
        """,
    "a_new_out_is_laid_out_like_the_inputs": """
        with lazy_init():
            v0 = torch.empty_strided((4, 3), (1, 4)).fill_(1)
            v1 = torch.mul(v0, 1, out=torch.empty(0))
        """,
    "an_out_of_another_shape_is_laid_out_like_the_inputs": """
        with lazy_init():
            v0 = torch.empty((8, 2, 3, 2), memory_format=torch.channels_last).fill_(7)
            v1 = torch.zeros(2, 8)
            torch.clamp(v0, -1, -1, out=v1)
        """,
    "a_view_that_out_resizes_is_laid_out_like_the_inputs": """
        with lazy_init():
            v0 = torch.rand(8, 4).movedim(-1, -2).narrow(0, 0, 2)
            v1 = torch.eye(8)
            torch.mul(v0, 1, out=v1.t())
        """,
    "what_lies_before_a_view_that_out_grows_is_kept": """
        with lazy_init():
            v0 = torch.arange(2.0, 0, -1)
            v1 = nn.Parameter(v0[1:])
            with torch.no_grad(): torch.mul(torch.ones(2), 1, out=v1)
        """,
    "means_in_another_layout_give_contiguous_draws": """
        with lazy_init():
            v0 = torch.empty((2, 2, 3, 2), memory_format=torch.channels_last).fill_(1)
            v1 = torch.normal(v0, v0)
        """,
    "index_fill_of_a_slice_has_the_layout_of_a_clone": """
        with lazy_init():
            v0 = torch.empty((1, 2, 3, 2), memory_format=torch.channels_last).fill_(1)
            v1 = v0[..., :1].index_fill(3, torch.tensor([0, 0]), 1)
        """,
    "set_of_a_leaf_forgets_the_shape_of_its_gradient": """
        with lazy_init():
            v0 = torch.ones((1, 1), requires_grad=True)
            v1 = v0.t()
            v2 = v1 * 2
            with torch.no_grad(): v0.set_(torch.ones(2).untyped_storage())
        """,
    "set_of_a_result_is_noted_in_its_graph": """
        with lazy_init():
            v0 = torch.ones(8, requires_grad=True)
            v1 = v0 * 2
            v1.set_(torch.eye(17).untyped_storage())
        """,
    "a_draw_over_a_result_is_noted_in_its_graph": """
        with lazy_init():
            v0 = torch.ones(8, requires_grad=True)
            v1 = v0 * 2
            torch.rand((5,), out=v1)
        """,
    "an_out_that_needs_no_derivative_may_be_a_weight": """
        with lazy_init():
            v0 = torch.ones(3, requires_grad=True)
            torch.lt(torch.zeros(3), torch.ones(3), out=v0)
        """,
    "a_sparse_tensor_that_is_no_source_of_a_copy_leaves_its_target": """
        with lazy_init():
            v0 = torch.ones(7)
            v0.copy_(torch.zeros(7).to_sparse())
        """,
    "a_parameter_is_not_resized": """
        with lazy_init():
            v0 = nn.Parameter(torch.ones(6))
            with torch.no_grad(): v0.resize_(())
        """,
}


@pytest.mark.parametrize("name", FOUND)
def test_a_program_does_lazily_what_it_does_eagerly(name: str) -> None:
    program = parse(FOUND[name])
    verdict = check(program)
    assert not verdict.unsteady, "eager reads memory that nobody wrote"
    assert verdict.failure is None, f"{program}\n{verdict.failure}"
