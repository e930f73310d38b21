"""`materialize`: targets, order, identity, dtype, arguments."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C

pytestmark = pytest.mark.core


class Model(nn.Module):
    """Parameters, ties, buffers, plain tensors; BatchNorm's counter is real from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.linspace(0, 1, 30).sin(), persistent=False)
        self.plain = torch.randn(40)
        self.cache = {"views": [self.plain[:10], self.plain[10:]]}


REAL = "norm.num_batches_tracked"  # made by torch.tensor


def build(*, lazy: bool, make: Callable[[], Any] = Model, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    if not lazy:
        return make()
    with dormant.lazy_init():
        return make()


def tensors(model: Model) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers()),
        "plain": model.plain,
        "view 0": model.cache["views"][0],
        "view 1": model.cache["views"][1],
    }


def assert_equal_models(eager: Model, lazy: Model) -> None:
    expected, got = tensors(eager), tensors(lazy)
    assert expected.keys() == got.keys()
    assert len(got) == 11
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)


def test_a_module_is_materialized_with_everything_it_holds() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    assert dormant.is_lazy(lazy)
    assert [name for name, tensor in tensors(lazy).items() if not dormant.is_lazy(tensor)] == [REAL]
    dormant.materialize(lazy)
    assert not dormant.is_lazy(lazy)
    assert_equal_models(eager, lazy)


@pytest.mark.parametrize("order", range(5))
def test_single_tensors_in_any_order(order: int) -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    parts = list(tensors(lazy).values())
    random.Random(order).shuffle(parts)
    for part in parts:
        dormant.materialize(part)
        assert not dormant.is_lazy(part)
    assert_equal_models(eager, lazy)


TARGETS: dict[str, Callable[[Model], Any]] = {
    "state dict": lambda model: {**model.state_dict(), "table": model.table, "p": model.plain},
    "list of modules": lambda model: [model.embedding, model.norm, model],
    "iterator": lambda model: itertools.chain(model.children(), [model.table, model.plain]),
    "mixed": lambda model: (model.table, model, {"plain": model.plain}),
    "nested mapping": lambda model: {"all": {"model": [model]}},
}


@pytest.mark.parametrize("target", TARGETS)
def test_target(target: str) -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    dormant.materialize(TARGETS[target](lazy))
    assert not dormant.is_lazy(lazy)
    assert_equal_models(eager, lazy)


def test_a_part_leaves_the_rest_lazy() -> None:
    model = build(lazy=True)
    dormant.materialize(model.norm)
    assert not dormant.is_lazy(model.norm)
    assert dormant.is_lazy(model.embedding.weight)
    assert dormant.is_lazy(model.plain)


def test_materializing_twice_changes_nothing() -> None:
    model = build(lazy=True)
    dormant.materialize(model)
    pointers = {name: tensor.data_ptr() for name, tensor in tensors(model).items()}
    model.plain.zero_()
    report = dormant.materialize(model)
    assert report.lazy_rate == 0.0
    assert report.count("real") == len(report.tensors)
    assert {name: tensor.data_ptr() for name, tensor in tensors(model).items()} == pointers
    assert not model.plain.any()


@pytest.mark.parametrize("bad", ["a string", 3, None, object()])
def test_a_target_of_another_type_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="target must be a module, a tensor, a mapping"):
        dormant.materialize(bad)  # type: ignore[arg-type]


def test_pairs_are_refused_with_a_hint() -> None:
    model = build(lazy=True)
    with pytest.raises(TypeError, match=r"item 0 is a tuple. For .* pass dict\(pairs\)"):
        dormant.materialize(model.named_parameters())
    assert dormant.is_lazy(model)


def test_arguments_that_are_not_possible_are_refused_before_anything_happens() -> None:
    model = build(lazy=True)
    for error, arguments in (
        (ValueError, {"values": "random"}),
        (TypeError, {"memory_budget": 1e9}),
        (ValueError, {"memory_budget": 0}),
        (ValueError, {"memory_budget": 1}),
        (TypeError, {"dtype": "bfloat16"}),
        (ValueError, {"dtype": torch.int8}),
        (ValueError, {"device": "meta"}),
        (ValueError, {"device": "no such device"}),
    ):
        with pytest.raises(error):
            dormant.materialize(model, **arguments)  # type: ignore[arg-type]
    assert all(dormant.is_lazy(t) for name, t in tensors(model).items() if name != REAL)
    assert model.plain.dtype is torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    model = build(lazy=True)
    with pytest.raises(ValueError, match="sees no CUDA GPU"):
        dormant.materialize(model, device="cuda")
    assert dormant.is_lazy(model)


def test_empty_gives_memory_without_running_anything() -> None:
    model = build(lazy=True)
    report = dormant.materialize(model, values="empty")
    assert not dormant.is_lazy(model)
    assert report.count("empty") == len(report.tensors) - 1
    model.plain.fill_(2.0)
    assert torch.equal(model.cache["views"][0], torch.full((10,), 2.0))


def test_every_reference_stays_the_same_object_and_valid() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    parameters = list(lazy.parameters())
    state = lazy.state_dict()
    optimizer = torch.optim.SGD(lazy.parameters(), lr=0.5)
    reference = torch.optim.SGD(eager.parameters(), lr=0.5)
    calls: list[str] = []
    lazy.embedding.weight.register_hook(lambda grad: calls.append("hook"))
    dormant.materialize(lazy)
    assert all(a is b for a, b in zip(parameters, lazy.parameters(), strict=True))
    assert lazy.head.weight is lazy.embedding.weight
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, state[name], name)
    for model, optim in ((eager, reference), (lazy, optimizer)):
        model.head(model.norm(model.embedding(torch.arange(1, 7)))).sum().backward()
        optim.step()
    assert calls == ["hook"]
    assert_equal_models(eager, lazy)
    for name, tensor in eager.state_dict().items():
        assert_same_bits(tensor, state[name], name)


def test_no_tensor_of_the_module_carries_the_key_afterwards() -> None:
    model = build(lazy=True)
    model.embedding.weight.grad = torch.zeros_like(model.embedding.weight)
    bases = [view._base for view in model.cache["views"]]
    dormant.materialize(model)
    for name, tensor in tensors(model).items():
        assert not _C.carries_key(tensor), name
    assert not _C.carries_key(model.embedding.weight.grad)
    assert not any(_C.carries_key(base) for base in bases if base is not None)


def converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As `module.to(dtype)` does it, except for buffers that no checkpoint has: tables."""
    tables = [
        (each, name, each._buffers[name])
        for each in module.modules()
        for name in each._non_persistent_buffers_set
    ]
    module.to(dtype)
    for each, name, table in tables:
        each._buffers[name] = table
    return module


def assert_as_module_to(build_model: Callable[[], Any], dtype: torch.dtype) -> None:
    eager = build(lazy=False, make=build_model)
    lazy = build(lazy=True, make=build_model)
    parameters = {name: id(tensor) for name, tensor in lazy.named_parameters()}
    converted(eager, dtype)
    dormant.materialize(lazy, dtype=dtype)
    assert {name: id(tensor) for name, tensor in lazy.named_parameters()} == parameters
    assert_equal_models(eager, lazy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_converts_as_module_to(dtype: torch.dtype) -> None:
    assert_as_module_to(Model, dtype)


def test_dtype_forms_no_copy_in_the_old_dtype() -> None:
    width = 1024

    def make() -> nn.Linear:
        return nn.Linear(width, width, bias=False)

    layer = build(lazy=True, make=make)
    report = dormant.materialize(layer, dtype=torch.bfloat16)
    assert report.nbytes == report.lazy_nbytes == 2 * width * width
    eager = build(lazy=False, make=make).to(torch.bfloat16)
    assert_same_bits(eager.weight, layer.weight)


def test_an_alias_outside_the_target_keeps_its_dtype() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    alias = lazy.embedding.weight.detach()
    dormant.materialize(lazy, dtype=torch.bfloat16)
    assert alias.dtype is torch.float32
    dormant.materialize(alias)
    assert_same_bits(eager.embedding.weight, alias)


def test_tensors_given_by_themselves_change_dtype_in_place() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    state = {"weight": lazy.embedding.weight, "count": lazy.norm.num_batches_tracked}
    weight = state["weight"]
    dormant.materialize(state, dtype=torch.float16)
    assert state["weight"] is weight is lazy.embedding.weight
    assert isinstance(weight, nn.Parameter)
    assert weight.requires_grad
    assert_same_bits(eager.embedding.weight.to(torch.float16), weight)
    assert state["count"].dtype is torch.int64


def test_a_real_model_changes_dtype_too() -> None:
    eager, real = build(lazy=False), build(lazy=False)
    dormant.materialize(real, dtype=torch.bfloat16)
    assert_equal_models(converted(eager, torch.bfloat16), real)


def test_device_cpu_is_where_everything_is_already() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)
    table = lazy.table
    report = dormant.materialize(lazy, device="cpu")
    assert lazy.table is table
    assert report.lazy_nbytes == report.nbytes - 8
    assert_equal_models(eager, lazy)


def test_a_lazy_linear_stays_uninitialized_until_it_is_called() -> None:
    layer = build(lazy=True, make=lambda: nn.LazyLinear(4))
    dormant.materialize(layer)
    assert isinstance(layer.weight, nn.UninitializedParameter)
    expected = build(lazy=False, make=lambda: nn.LazyLinear(4))
    for each in (layer, expected):
        torch.manual_seed(0)
        each(torch.ones(1, 3))
    assert_same_bits(expected.weight, layer.weight)


def test_progress_is_told_to_a_function() -> None:
    model = build(lazy=True)
    steps: list[tuple[int, int]] = []
    dormant.materialize(model, progress=lambda done, total: steps.append((done, total)))
    assert len(steps) > 1
    assert steps == sorted(steps)
    assert len({total for _, total in steps}) == 1
    assert all(0 <= done <= total for done, total in steps)


def test_an_interrupt_leaves_what_is_unfinished_lazy_and_can_be_resumed() -> None:
    eager, lazy = build(lazy=False), build(lazy=True)

    def interrupt(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dormant.materialize(lazy, progress=interrupt)
    assert dormant.is_lazy(lazy)
    for tensor in tensors(lazy).values():
        assert dormant.is_lazy(tensor) == _C.carries_key(tensor)
    dormant.materialize(lazy)
    assert_equal_models(eager, lazy)


def test_verbose_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    model = build(lazy=True)
    report = dormant.materialize(model, verbose=True)
    assert capsys.readouterr().out == f"{report}\n"
    dormant.materialize(build(lazy=True))
    assert capsys.readouterr() == ("", "")


def test_is_lazy_looks_at_every_tensor_of_a_module() -> None:
    class Holder(nn.Module):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__()
            self.nested = [{"tensor": tensor}]

    with dormant.lazy_init():
        lazy = torch.zeros(2)
    assert dormant.is_lazy(Holder(lazy))
    assert not dormant.is_lazy(Holder(torch.zeros(2)))
    assert dormant.is_lazy([Holder(lazy)])


def test_materializing_inside_a_context_keeps_recording() -> None:
    eager = build(lazy=False, make=lambda: (torch.randn(20), torch.randn(20)))
    torch.manual_seed(3)
    with dormant.lazy_init():
        first = torch.randn(20)
        dormant.materialize(first)
        assert not dormant.is_lazy(first)
        second = torch.randn(20)
        assert dormant.is_lazy(second)
    dormant.materialize(second)
    assert_same_bits(eager[0], first)
    assert_same_bits(eager[1], second)


ALL_ALIKE: dict[str, Callable[[Model], Any]] = {
    "module": lambda model: model,
    "tensor": lambda model: model.plain,
    "state dict": lambda model: model.state_dict(),
    "parameters": lambda model: model.parameters(),
    "list": lambda model: [model.table, model.norm],
    "tuple": lambda model: (model.plain,),
    "set": lambda model: {model.plain},
    "list of mappings": lambda model: [model.state_dict(), {"deep": {"er": [model.plain]}}],
}


@pytest.mark.parametrize("target", ALL_ALIKE)
def test_is_lazy_summary_and_materialize_take_the_same(target: str) -> None:
    model = build(lazy=True)
    make = ALL_ALIKE[target]
    assert dormant.is_lazy(make(model)) is True
    found = dormant.summary(make(model))
    report = dormant.materialize(make(model))
    assert [tensor.names for tensor in found.tensors] == [tensor.names for tensor in report.tensors]
    assert found.bytes_after == report.nbytes
    assert dormant.is_lazy(make(model)) is False
    assert dormant.summary(make(model)).lazy_rate == 0


@pytest.mark.parametrize("operation", [dormant.is_lazy, dormant.summary, dormant.materialize])
@pytest.mark.parametrize(
    "bad", [3, "text", None, Mock(spec=torch.Tensor), Mock(spec=nn.Linear), [3], [[]]]
)
def test_all_three_refuse_the_same(operation: Callable[[Any], Any], bad: object) -> None:
    with pytest.raises(TypeError, match=operation.__name__):
        operation(bad)


def test_a_container_that_is_given_is_read_by_the_methods_of_its_built_in_class() -> None:
    class Endless(list[Any]):
        def __iter__(self) -> Any:
            return itertools.repeat(0)

    class Empty(dict[str, Any]):
        def items(self) -> Any:
            return ()

    for kind in (Endless, lambda tensors: Empty({"t": tensors[0]})):
        with dormant.lazy_init():
            tensor = torch.ones(2)
        target = kind([tensor])
        assert dormant.is_lazy(target)
        dormant.materialize(target)
        assert not dormant.is_lazy(tensor)


def test_a_checkpoint_is_lazy_has_a_summary_and_is_not_materialized(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tied = torch.ones(4, 4)
    torch.save({"a": tied, "b": tied, "c": torch.zeros(3)}, path)
    checkpoint = dormant.open_checkpoint(path)
    assert dormant.is_lazy(checkpoint)
    found = dormant.summary(checkpoint)
    assert [tensor.names for tensor in found.tensors] == [("a", "b"), ("c",)]
    assert (found.bytes_now, found.bytes_after) == (0, 76)
    for target in (checkpoint, [torch.ones(1), checkpoint]):
        with pytest.raises(TypeError, match=r"dict\(checkpoint\).* dormant\.load"):
            dormant.materialize(target)
    state = dict(checkpoint)
    report = dormant.materialize(state)
    assert report.count("checkpoint") == 2
    assert not dormant.is_lazy(state)
    assert_same_bits(tied, state["a"])


def test_meta_tensors_are_named_as_such_and_never_called_real() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lazy = nn.Linear(2, 2)
            self.meta = nn.Linear(2, 2, device="meta")
            self.register_buffer("nothing", torch.ones(5, device="meta"))
            self.note = [torch.ones(7, device="meta")]

    model = build(lazy=True, make=Half)
    found = dormant.summary(model)
    assert sorted(t.names[0] for t in found.tensors if t.meta) == [
        "meta.bias",
        "meta.weight",
        "note[0]",
        "nothing",
    ]
    assert (found.bytes_now, found.bytes_after, found.lazy_rate) == (0, 24, 1.0)
    assert "4 tensors on the meta device" in str(found)
    # What is no part of the state, as the shapes that a tracer notes, is nobody's mistake.
    with pytest.warns(UserWarning, match=r"3 tensors on the meta device .*: nothing, ") as caught:
        report = dormant.materialize(model, device="cpu")
    assert caught[0].filename == __file__
    assert (report.count("meta"), report.count("real")) == (4, 0)
    assert report.nbytes == report.lazy_nbytes == 24
    assert model.meta.weight.is_meta
    assert not dormant.is_lazy(model)


def test_a_fake_tensor_is_a_meta_tensor() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    holder = nn.Module()
    holder.fake = [fake]
    assert [tensor.meta for tensor in dormant.summary(holder).tensors] == [True]
    assert dormant.materialize(holder).count("meta") == 1


def test_a_model_without_meta_tensors_gets_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    dormant.materialize(build(lazy=True))
    assert len(recwarn) == 0


@pytest.mark.parametrize("values", ["exact", "empty"])
def test_aliases_of_what_failed_half_way_agree_with_their_storages(values: Any) -> None:
    model = build(lazy=True)
    aliases = [tensor.detach() for tensor in tensors(model).values()]
    model.aliases = aliases

    def interrupt(done: int, total: int) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dormant.materialize(model, values=values, progress=interrupt)
    for tensor in (*tensors(model).values(), *aliases):
        assert dormant.is_lazy(tensor) == _C.carries_key(tensor)


SPARSE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "coo": lambda v: torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), v, (2, 2)),
    "coo that is checked": lambda v: torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [1, 0]]), v, (2, 2), check_invariants=True
    ),
    "coo of a size": lambda v: torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), v),
    "coo over lazy indices": lambda v: torch.sparse_coo_tensor(
        torch.zeros(2, 2, dtype=torch.long), v, (2, 2)
    ),
    "csr": lambda v: torch.sparse_csr_tensor([0, 1, 2], [1, 0], v, (2, 2)),
    "csc": lambda v: torch.sparse_csc_tensor([0, 1, 2], [1, 0], v, (2, 2)),
    "of a dense one": lambda v: torch.diag(v).to_sparse(),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("dense", ["inside", "after"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layout", SPARSE)
def test_a_sparse_tensor_over_a_lazy_parameter(layout: str, grad: bool, dense: str) -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.randn(2), requires_grad=grad)
            self.held = SPARSE[layout](self.values)
            if dense == "inside":
                self.held = self.held.to_dense()

    eager, lazy = (build(lazy=lazy, make=Sparse) for lazy in (False, True))
    dormant.summary(lazy)
    dormant.materialize(lazy)
    results = []
    for model in (eager, lazy):
        result = model.held.to_dense() if dense == "after" else model.held
        if grad:
            result.sum().backward()
        results.append((result.detach(), model.values.grad))
    assert_same_bits(results[0][0], results[1][0])
    if grad:
        assert_same_bits(results[0][1], results[1][1])
