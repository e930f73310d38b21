"""Recipes that somebody edited: refused when they are read, and nothing else is changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dormant
from dormant import _C, recipes
from living import live_storages

pytestmark = pytest.mark.core

Document = dict[str, Any]
Edit = Callable[[Document, list[torch.Tensor]], None]


def table() -> torch.Tensor:
    base = torch.ones(4, 3)
    base[:, 1].mul_(2)
    return torch.cat([base, base.sin()], 1)


def drawn() -> torch.Tensor:
    return torch.empty(4, 5).normal_(0, 0.5)


def largest() -> torch.Tensor:
    return torch.topk(torch.arange(12.0).view(3, 4).clone(), 2)[0]


def padded() -> torch.Tensor:
    return torch.nn.functional.pad(torch.ones(8), (1, 1))


def captured() -> torch.Tensor:
    result = torch.empty(4)
    result.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    return result.index_fill_(0, torch.tensor([1, 3]), 0.5).div_(3)


def divided() -> torch.Tensor:
    return torch.div(torch.arange(6), 4, rounding_mode="floor")


def dumped(make: Callable[[], torch.Tensor]) -> tuple[Document, list[torch.Tensor]]:
    torch.manual_seed(4)
    with dormant.lazy_init():
        tensor = make()
    document, tensors = _C.dump(tensor)
    return json.loads(document), tensors


def load(document: Document, tensors: list[torch.Tensor]) -> torch.Tensor:
    return _C.load(json.dumps(document).encode(), tensors)


def refuse(make: Callable[[], torch.Tensor], edit: Edit) -> None:
    document, tensors = dumped(make)
    load(document, tensors)
    edit(document, tensors)
    living, state, threads = live_storages(), torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(ValueError, match=r"recipe: .*Next: "):
        load(document, tensors)
    assert _C.live_storages() == living
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def step(document: Document, operator: str) -> Document:
    found: Document = next(
        one for one in document["steps"] if one["operator"].removeprefix("aten::") == operator
    )
    return found


def argument(operator: str, index: int, value: Any) -> Edit:
    """Replaces an argument, or with a function changes it."""

    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        arguments = step(document, operator)["arguments"]
        arguments[index] = value(arguments[index]) if callable(value) else value

    return edit


def field(operator: str, name: str, value: Any) -> Edit:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        step(document, operator)[name] = value

    return edit


def tensor_field(operator: str, index: int, **fields: Any) -> Edit:
    return argument(operator, index, lambda old: {**old, **fields})


def document_field(name: str, value: Any) -> Edit:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        document[name] = value(document[name]) if callable(value) else value

    return edit


def tensor(index: int, value: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        tensors[index] = value(tensors[index])

    return edit


HUGE = 1 << 40


@pytest.mark.parametrize(
    "edit",
    [
        field("topk", "results", [0]),
        field("topk", "results", [0, 1, 2]),
        field("topk", "results", []),
        field("topk", "results", [0, 0]),
        field("topk", "results", [0, 2]),
        field("topk", "results", [0, -1]),
        field("topk", "results", [0, HUGE]),
        field("topk", "results", 2),
        field("topk", "results", {"0": 0, "1": 1}),
        document_field("storages", lambda old: [old[0] + 8, *old[1:]]),
        document_field("storages", lambda old: [0, *old[1:]]),
        argument("topk", 1, 5),
        argument("topk", 1, HUGE),
        argument("topk", 1, -1),
        argument("topk", 2, 2),
        argument("topk", 2, -(1 << 63)),
    ],
)
def test_results_that_the_operator_does_not_give(edit: Edit) -> None:
    refuse(largest, edit)


def test_an_operator_that_writes_in_place_has_no_results() -> None:
    refuse(table, field("mul_", "results", [0]))


@pytest.mark.parametrize(
    "edit",
    [
        argument("cat", 1, HUGE),
        argument("cat", 1, -3),
        argument("cat", 1, 0.5),
        argument("cat", 1, "1"),
        argument("cat", 1, None),
        argument("cat", 1, True),
        argument("cat", 1, 1 << 63),
        argument("cat", 1, -(1 << 63) - 1),
        argument("cat", 1, [1]),
        argument("cat", 0, []),
        argument("cat", 0, lambda old: [*old, None]),
        argument("cat", 0, lambda old: old * 5000),
        argument("cat", 0, lambda old: old[0]),
        argument("cat", 0, lambda old: [old]),
        argument("fill_", 1, "x"),
        argument("fill_", 1, {}),
        argument("fill_", 1, ["0"]),
        field("cat", "arguments", []),
        field("cat", "arguments", {}),
        field("cat", "arguments", None),
    ],
)
def test_arguments_that_the_operator_does_not_take(edit: Edit) -> None:
    refuse(table, edit)


@pytest.mark.parametrize(
    "padding", [[1] * 4000, [1] * 4, [1], [HUGE, HUGE], [-9, 0], [(1 << 63) - 1, 1], [None, 1], {}]
)
def test_padding_that_does_not_fit(padding: Any) -> None:
    refuse(padded, argument("constant_pad_nd", 1, padding))


@pytest.mark.parametrize(
    "fields",
    [
        {"sizes": [1 << 32, 1 << 32], "strides": [0, 0]},
        {"sizes": [HUGE, 1], "strides": [0, 1]},
        {"sizes": [4, 4], "strides": [3, 1]},
        {"sizes": [4], "strides": [3, 1]},
        {"sizes": [-1, 3]},
        {"sizes": [0, 1 << 62], "strides": [1 << 62, 1]},
        {"strides": [-3, 1]},
        {"strides": [1 << 62, 1]},
        {"strides": [0, 0]},
        {"offset": 1},
        {"offset": -1},
        {"offset": (1 << 63) - 1},
        {"offset": 1 << 63},
        {"sizes": [1] * 65, "strides": [1] * 65},
        {"sizes": [[1]], "strides": [1]},
        {"dtype": "Double"},
        {"dtype": "QInt8"},
        {"dtype": "Undefined"},
        {"dtype": 6},
        {"dtype": "Bits8"},
        {"conjugate": True},
        {"negative": 1},
        {"number": True},
        {"before": 0},
        {"storage": 99},
        {"storage": -1},
        {"storage": None},
        {"storage": "0"},
        {"captured": 0},
    ],
)
def test_tensors_that_cannot_be_written(fields: Document) -> None:
    refuse(table, tensor_field("fill_", 0, **fields))


def test_a_tensor_over_another_storage() -> None:
    refuse(table, tensor_field("fill_", 0, storage=0))
    refuse(largest, tensor_field("topk", 0, storage=0))


def test_a_step_that_reads_what_a_later_one_makes() -> None:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        document["steps"].reverse()

    refuse(table, edit)


def test_a_step_that_reads_its_own_result() -> None:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        sine = step(document, "sin")
        sine["arguments"][0]["storage"] = sine["results"][0]

    refuse(table, edit)


def test_a_step_that_happens_twice() -> None:
    refuse(table, document_field("steps", lambda old: [*old, old[-1]]))


def test_memory_that_is_written_and_partly_read() -> None:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        whole = step(document, "fill_")["arguments"][0]
        document["steps"].insert(
            1,
            {
                "operator": "aten::copy_",
                "overload": "",
                "threads": 1,
                "arguments": [
                    {**whole, "sizes": [4], "strides": [1], "offset": 1},
                    {**whole, "sizes": [4], "strides": [1], "offset": 0},
                    False,
                ],
            },
        )

    refuse(table, edit)


def test_elements_shown_again_and_again() -> None:
    refuse(table, tensor_field("sin", 0, sizes=[HUGE, 1], strides=[0, 0]))


@pytest.mark.parametrize(
    "edit",
    [
        argument("copy_", 0, {"captured": 0}),
        argument("copy_", 1, {"captured": 1}),
        argument("copy_", 1, {"captured": -1}),
        argument("copy_", 1, {"captured": 99}),
        argument("copy_", 1, {"captured": 0, "number": True}),
        argument("copy_", 1, {"captured": 0, "number": 1}),
        argument("copy_", 1, {"captured": 0, "sizes": [4]}),
        argument("copy_", 1, None),
        argument("copy_", 1, []),
        argument("copy_", 1, lambda old: [old]),
        argument("index_fill_", 2, {"captured": 0}),
        tensor(0, lambda old: old[:3].clone()),
        tensor(0, lambda old: old.to_sparse()),
        tensor(0, lambda old: old.to("meta")),
        tensor(0, lambda old: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8)),
        tensor(0, lambda old: torch.zeros(1).expand(1 << 40)),
        tensor(0, lambda old: torch.zeros(100_000)),
        tensor(1, lambda old: torch.tensor([1, 4])),
        tensor(1, lambda old: torch.tensor([-5, 1])),
        tensor(1, lambda old: torch.tensor([1 << 40, 1])),
        tensor(1, lambda old: torch.tensor([1.0, 2.0])),
        tensor(1, lambda old: torch.tensor([[1], [3]])),
        lambda document, tensors: tensors.clear(),
        lambda document, tensors: tensors.append(torch.zeros(1)),
        lambda document, tensors: tensors.reverse(),
    ],
)
def test_captured_tensors_that_do_not_belong(edit: Edit) -> None:
    refuse(captured, edit)


def test_a_captured_tensor_that_is_lazy() -> None:
    with dormant.lazy_init():
        lazy = torch.ones(4)
    refuse(captured, tensor(0, lambda old: lazy))
    assert dormant.is_lazy(lazy)


def test_an_index_whose_values_are_lazy_is_not_materialized() -> None:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        document["storages"].append(16)
        index = {"sizes": [2], "strides": [1], "offset": 0, "dtype": "Long"}
        step(document, "index_fill_")["arguments"][2] = {
            **index,
            "storage": len(document["storages"]) - 1,
        }
        del tensors[1]
        step(document, "div_")["arguments"][1]["captured"] = 1

    refuse(captured, edit)


def position(left: int, following: int, words: bytes, flags: int = 0, normal: bytes = b"") -> str:
    return (
        struct.pack("<BBQ", 1, flags, 0) + normal + struct.pack("<HH", left, following) + words
    ).hex()


def counted() -> torch.Tensor:
    return torch.arange(0, 5, 1)


def test_a_range_of_more_elements_than_memory_holds() -> None:
    refuse(counted, argument("arange", 1, 1 << 40))


WORDS = b"\1\2\3\4" * 624


@pytest.mark.parametrize(
    "value",
    [
        position(624, 624, WORDS),
        position(0, 624, WORDS),
        position(625, 0, WORDS),
        position(2, 0, WORDS),
        position(1, 625, WORDS),
        position(1, 624, b"\0" * 4 * 624),
        position(1, 624, WORDS[:-1]),
        position(1, 624, WORDS + b"\0"),
        position(1, 624, WORDS, flags=8),
        "",
        "0",
        "zz",
        "01 0",
        None,
        1,
        ["01"],
        {"captured": 0},
    ],
)
def test_random_positions_that_cannot_be(value: Any) -> None:
    refuse(drawn, argument("normal_", 3, value))


def test_a_position_that_can_be_is_accepted() -> None:
    document, tensors = dumped(drawn)
    argument("normal_", 3, position(1, 624, WORDS))(document, tensors)
    assert load(document, tensors).shape == (80,)


@pytest.mark.parametrize("value", ["-1p+0", "nan", "0x1p+0", "1,5", "", " 1", 0, None])
def test_deviations_that_cannot_be(value: Any) -> None:
    refuse(drawn, argument("normal_", 2, value))


@pytest.mark.parametrize("threads", [0, -1, 1 << 20, 1 << 31, 1 << 64, "2", None, 1.5])
def test_thread_counts_that_cannot_be(threads: Any) -> None:
    refuse(table, field("cat", "threads", threads))


def test_a_division_that_the_processor_answers_with_a_signal() -> None:
    refuse(divided, argument("div", 2, "trunc"))


def test_modes_that_the_operator_does_not_know() -> None:
    refuse(divided, argument("div", 2, "round"))
    refuse(divided, argument("div", 2, 1))


@pytest.mark.parametrize(
    ("operator", "overload"),
    [
        ("aten::segment_reduce", ""),
        ("aten::_index_put_impl_", ""),
        ("aten::_unsafe_index_put", ""),
        ("aten::embedding_dense_backward", ""),
        ("aten::as_strided_copy", ""),
        ("aten::set_", "source_Storage"),
        ("aten::resize_", ""),
        ("aten::from_file", ""),
        ("aten::empty", "memory_format"),
        ("aten::randn", ""),
        ("aten::unbind_copy", "int"),
        ("aten::cat", "no_such_overload"),
        ("cat", ""),
        ("aten::cat\0", ""),
        ("prim::Print", ""),
        ("c10d::broadcast_", ""),
        (None, ""),
        ("aten::cat", None),
        (["aten::cat"], ""),
    ],
)
def test_operators_that_recipes_may_not_contain(operator: Any, overload: Any) -> None:
    def edit(document: Document, tensors: list[torch.Tensor]) -> None:
        step(document, "cat").update(operator=operator, overload=overload)

    refuse(table, edit)


@pytest.mark.parametrize(
    "edit",
    [
        document_field("steps", []),
        document_field("steps", {}),
        document_field("steps", None),
        document_field("steps", [[]]),
        document_field("steps", [{}]),
        document_field("storages", []),
        document_field("storages", {}),
        document_field("storages", lambda old: [-1, *old[1:]]),
        document_field("storages", lambda old: [1 << 63, *old[1:]]),
        document_field("storages", lambda old: [*old, (1 << 63) - 1]),
        document_field("storages", lambda old: [None, *old[1:]]),
        document_field("target", 99),
        document_field("target", -1),
        document_field("target", None),
        document_field("target", "0"),
        document_field("version", 1),
        document_field("version", 3),
        document_field("version", "2"),
        document_field("version", 2.0),
        document_field("version", None),
        document_field("schema", "other"),
        document_field("schema", None),
        document_field("more", 1),
        field("index_fill_", "kind", "in_place"),
        lambda document, tensors: document.pop("version"),
        lambda document, tensors: document.pop("schema"),
        lambda document, tensors: document.pop("steps"),
        lambda document, tensors: document.pop("storages"),
        lambda document, tensors: document.pop("target"),
        lambda document, tensors: document["steps"][0].pop("threads"),
        lambda document, tensors: document["steps"][0].pop("overload"),
    ],
)
def test_documents_that_are_not_of_the_schema(edit: Edit) -> None:
    refuse(captured, edit)


@pytest.mark.parametrize("opening", [b"[", b'{"schema":', b'{"steps":[[{"a":'])
def test_deep_nesting(opening: bytes) -> None:
    for damage in (
        opening * 100_000,
        b'{"schema":"dormant.recipe","version":2,"steps":' + opening * 9,
    ):
        with pytest.raises(ValueError, match=r"recipe: .*Next: "):
            _C.load(damage, [])


def test_the_message_says_where_and_what() -> None:
    document, tensors = dumped(table)
    argument("cat", 1, HUGE)(document, tensors)
    with pytest.raises(ValueError, match=r"step 3: aten::cat would not be recorded"):
        load(document, tensors)


@pytest.mark.parametrize(
    "packed",
    [
        None,
        (),
        (torch.float32, (2,), (1,), b"1234567"),
        (torch.float32, (2,), (1,), b"123456789"),
        (torch.float32, (2, 2), (1, 0), b"\0" * 16),
        (torch.float32, (2, 2), (3, 0), b"\0" * 16),
        (torch.float32, (2,), (-1,), b"\0" * 8),
        (torch.float32, (-2,), (1,), b"\0" * 8),
        (torch.float32, (2,), (1 << 40,), b"\0" * 8),
        (torch.float32, (1 << 62, 4), (4, 1), b""),
        (torch.float32, (2,), (1, 1), b"\0" * 8),
        (torch.float32, (2,), (1,), "12345678"),
        (torch.quint8, (2,), (1,), b"12"),
        ("float32", (2,), (1,), b"\0" * 8),
    ],
)
def test_captured_tensors_that_cannot_be(packed: Any) -> None:
    with pytest.raises(ValueError, match="recipe: a captured tensor is not valid"):
        recipes.load_storage(b"{}", [packed])
