"""The pickle machine gives what a pickle says and runs nothing of it."""

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
import pickletools
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from dormant.checkpoint.inert import Global, PersistentId, Record, read_pickle

PROTOCOLS = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 255, 256, 65535, 65536, -(1 << 31), 1 << 31, 1 << 63, -(1 << 63)),
    *((1 << 64) - 1, -(1 << 64), 1 << 2039, 1 << 2047, -(1 << 2048), 0.0, -0.0, 1.5, 1e300),
    *(float("inf"), "", "text", "é😀\ud800\\u0041\n\r\x1a", "x" * 300, "y" * 70000),
    *((), (1,), (1, 2, 3, 4), [], [1, [2, [3]]], {}, {"a": {1: (2, None)}}, [[]] * 3),
    {i: str(i) for i in range(3000)},
    list(range(3000)),
]


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


@PROTOCOLS
def test_plain_values_are_those_of_python(protocol: int) -> None:
    for value in VALUES:
        data = pickle.dumps(value, protocol)
        assert same(read_pickle(data, "a test"), value), data[:100]
    data = pickle.dumps(VALUES, protocol)
    assert same(read_pickle(data, "a test"), VALUES)
    assert same(read_pickle(pickletools.optimize(data), "a test"), VALUES)


@pytest.mark.parametrize("protocol", [4, 5])
def test_sets_and_bytes_are_those_of_python(protocol: int) -> None:
    value = [{1, "a"}, frozenset({(1, 2), "b"}), b"", b"\0\xff" * 300, b"z" * 70000, set()]
    assert read_pickle(pickle.dumps(value, protocol), "a test") == value


def test_a_bytearray_is_that_of_python() -> None:
    assert same(read_pickle(pickle.dumps(bytearray(b"ab"), 5), "a test"), bytearray(b"ab"))


def test_random_values_are_those_of_python() -> None:
    rng = random.Random(3)

    def value(depth: int) -> Any:
        kind = rng.randrange(9 if depth else 5)
        if kind < 5:
            return rng.choice(VALUES[:26])
        items = [value(depth - 1) for _ in range(rng.randrange(5))]
        if kind == 5:
            return tuple(items)
        if kind == 6:
            return items * 2
        return {str(i): item for i, item in enumerate(items)}

    for _ in range(300):
        made = value(5)
        protocol = rng.randrange(6)
        assert same(read_pickle(pickle.dumps(made, protocol), "a test"), made)


@PROTOCOLS
def test_what_is_shared_stays_shared(protocol: int) -> None:
    inner: list[Any] = []
    loop: dict[str, Any] = {"list": inner, "pair": (inner, inner)}
    inner.append(loop)
    got = read_pickle(pickle.dumps(loop, protocol), "a test")
    assert got["list"] is got["pair"][0] is got["pair"][1]
    assert got["list"][0] is got


class Odd:
    """Has a state, items and entries."""

    def __init__(self, value: Any) -> None:
        self.value = value


class OddList(list[Any]):
    pass


class Tells:
    def __reduce__(self) -> Any:
        return os.system, ("touch /nowhere/at/all",)


@PROTOCOLS
def test_an_object_of_a_class_is_a_record(protocol: int) -> None:
    value = Odd([1])
    value.me = value  # type: ignore[attr-defined]
    got = read_pickle(pickle.dumps(value, protocol), "a test")
    assert isinstance(got, Record)
    assert got.class_ == Global(__name__, "Odd")
    assert got.state["value"] == [1]
    assert got.state["me"] is got
    assert repr(got).startswith(f"<{__name__}.Odd(")


@PROTOCOLS
def test_items_and_entries_of_a_record(protocol: int) -> None:
    got = read_pickle(pickle.dumps(collections.OrderedDict(a=1, b=2), protocol), "a test")
    if got.entries:  # protocol 0 and 1 give the class a list
        assert got.entries == [("a", 1), ("b", 2)]
    assert got.callable == Global("collections", "OrderedDict")
    made = OddList([1, 2])
    made.extra = 3  # type: ignore[attr-defined]
    got = read_pickle(pickle.dumps(made, protocol), "a test")
    assert got.class_ == Global(__name__, "OddList")
    assert got.state == {"extra": 3}
    assert got.items == [1, 2] or got.arguments[2] == [1, 2]


@PROTOCOLS
def test_nothing_is_called(protocol: int) -> None:
    ran: list[str] = []
    got = read_pickle(pickle.dumps(Tells(), protocol), "a test")
    assert got.callable == Global(os.system.__module__, "system")
    assert got.arguments == ("touch /nowhere/at/all",)
    assert not ran


def test_nothing_is_imported() -> None:
    import sys

    data = b"\x80\x04\x8c\x0bantigravity\x8c\x03fly\x93)R."
    assert read_pickle(data, "a test").callable == Global("antigravity", "fly")
    assert "antigravity" not in sys.modules


@PROTOCOLS
def test_names_are_those_of_python_3(protocol: int) -> None:
    got = read_pickle(pickle.dumps([set, range, datetime.date], protocol), "a test")
    assert got == [
        Global("builtins", "set"),
        Global("builtins", "range"),
        Global("datetime", "date"),
    ]


def test_what_lies_elsewhere() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", 3) if value is Odd else None

    out = io.BytesIO()
    Pickler(out).dump([Odd])
    (got,) = read_pickle(out.getvalue(), "a test")
    assert isinstance(got, PersistentId)
    assert got.value == ("storage", 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"}]Ns.", "a key that Python cannot hash"),
        (b"\x8f(]\x90.", "a key that Python cannot hash"),
        (b"(]\x91.", "a key that Python cannot hash"),
        (b"})" + b"\x85" * 200 + b"Ns.", "the tuple .* depth 201"),
        (b"})" + b"q\x01h\x01\x86" * 60 + b"Ns.", "the tuple .* or more elements"),
        (b"\x8b\xff\xff\xff\x7f.", "takes 2147483647 bytes"),
        (b"", "byte 0"),
    ],
)
def test_what_cannot_be_a_value(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_pickle(data, "a test")
    assert "a test" in str(caught.value)


def test_a_million_lists_in_lists() -> None:
    depth = 1_000_000
    got = read_pickle(b"]" * depth + b"a" * (depth - 1) + b".", "a test")
    for _ in range(depth - 1):
        (got,) = got
    assert got == []


def test_every_prefix_and_every_changed_byte() -> None:
    data = pickle.dumps([VALUES[:26], collections.OrderedDict(a=1), Path("x")], 2)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="a test"):
            read_pickle(data[:end], "a test")
    rng = random.Random(1)
    for _ in range(3000):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] = rng.randrange(256)
        message = "a test"
        try:
            read_pickle(bytes(changed), "a test")
        except ValueError as error:
            message = str(error)
        assert "a test" in message


@pytest.mark.threads
def test_threads_read_at_once() -> None:
    data = pickle.dumps(VALUES, 4)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(20):
                assert same(read_pickle(data, "a test"), VALUES)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
