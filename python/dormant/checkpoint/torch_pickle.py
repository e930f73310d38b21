"""Pickles of torch.save, read by PyTorch's weights-only unpickler without any tensor's bytes.

The unpickler makes the tensors; the storages they ask for are given to it on the meta device, where
any size is free. What it makes is geometry, and the storage of each tensor says which record of the
file it lies in.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch
from torch._weights_only_unpickler import Unpickler

from dormant.tensors.storage import unrecorded

# Their constructors have no types.
_UntypedStorage = cast(Any, torch.UntypedStorage)
_TypedStorage = cast(Any, torch.storage.TypedStorage)

# Weights-only loading allows these; their tensors are no views of bytes in the file.
_NOT_VIEWS = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils _rebuild_nested_tensor": "a nested tensor",
    "torch._utils _rebuild_qtensor": "a quantized tensor",
    "torch._utils _rebuild_meta_tensor_no_storage": "a tensor of the meta device",
    "torch._utils _rebuild_wrapper_subclass": "a tensor subclass",
    "torch._utils _rebuild_device_tensor_from_numpy": "a tensor kept as a numpy array",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}

# Hashing a tuple recurses in C, once for each way to an element: limits far beyond real files
# keep a dictionary key from taking the stack or for ever.
_DEEPEST = 100
_HEAVIEST = 1_000_000


@dataclass(frozen=True)
class StorageRequest:
    """A storage that a pickle refers to.

    Attributes:
        key: its name in the file.
        dtype: the type of its elements.
        numel: number of elements.
        location: the device that it was saved from.
        view: (key, offset, numel) in elements, where it is a part of the storage `key`.
    """

    key: str
    dtype: torch.dtype
    numel: int
    location: str
    view: tuple[str, int, int] | None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where in the file a storage lies that a pickle was given: elements of another storage on."""

    request: StorageRequest
    offset: int


@dataclass(frozen=True)
class Unpickled:
    """What a pickle holds.

    Attributes:
        value: its object; tensors in it are on the meta device.
        places: by the identity of a tensor's storage, what it asked for.
        requests: every storage by key.
    """

    value: Any
    places: dict[int, Place]
    requests: dict[str, StorageRequest]
    storages: list[torch.UntypedStorage]


@dataclass(frozen=True)
class Pickle:
    """A pickle that was looked at and not run yet.

    Attributes:
        data: its bytes.
        where: names it in messages.
        asks_for: functions and classes that it asks for, with the byte where it first does.
    """

    data: bytes
    where: str
    asks_for: dict[str, int]


def read_pickle(stream: BinaryIO, where: str) -> Pickle:
    """Takes one pickle from a stream after looking at each of its instructions.

    Args:
        stream: stands at its beginning, then behind its end.
        where: names the pickle in messages.

    Raises:
        ValueError: it is no pickle, ends early, or nests tuples without end.
        NotImplementedError: it has tensors that are no views of bytes in the file.
    """
    begin = stream.tell()
    stack = _Stack()
    asks_for: dict[str, int] = {}
    position = begin
    try:
        for opcode, argument, at in pickletools.genops(stream):
            position = begin if at is None else at
            if opcode.name == "GLOBAL" and argument is not None:
                asks_for.setdefault(argument.replace(" ", "."), position - begin)
                if (kind := _kind_without_bytes(argument)) is not None:
                    raise NotImplementedError(
                        f"open_checkpoint: {where} has {kind} (its byte "
                        f"{position - begin}), expected strided tensors. Load it with torch.load "
                        "and save dense tensors."
                    )
            stack.step(opcode.name, argument)
    except NotImplementedError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"open_checkpoint: {where} is no pickle that torch.save writes: instruction at its "
            f"byte offset {position - begin}: {error}. The file is damaged, or not a checkpoint."
        ) from error
    end = stream.tell()
    stream.seek(begin)
    return Pickle(stream.read(end - begin), where, asks_for)


_ATOM = (0, 1)
_PUSH = frozenset(
    {
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINSTRING", "GLOBAL"),
        *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
    }
)
# Instructions that take so many values from the top and leave one, or the container below.
_TAKES = {"REDUCE": 2, "NEWOBJ": 2, "BUILD": 2, "APPEND": 2, "SETITEM": 3, "BINPERSID": 1}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _kind_without_bytes(name: str) -> str | None:
    """What kind of tensor a function or class makes, if it is no view of bytes in the file."""
    # Classes of sparse tensors: PyTorch would check what they made when it next loads a file.
    return _NOT_VIEWS.get(name, "a sparse tensor" if "sparse" in name else None)


class _Stack:
    """The unpickler's stack, of which only the nesting of tuples is kept: (depth, weight)."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, int]] = []
        self._below: list[list[tuple[int, int]]] = []
        self._memo: dict[int, tuple[int, int]] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self._stack.append(_ATOM)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name == "TUPLE":
            items = self._pop_mark()
            self._stack.append(self._tuple(items))
        elif name in _TUPLES:
            self._stack.append(self._tuple(self._pop(_TUPLES[name])))
        elif name in ("APPENDS", "SETITEMS"):
            self._pop_mark()
            self._stack[-1] = _ATOM
        elif name in _TAKES:
            self._pop(_TAKES[name])
            self._stack.append(_ATOM)
        elif name == "STOP":
            self._pop(1)
        elif name != "PROTO":
            raise ValueError(f"{name} is not among those of weights-only loading")

    def _pop(self, count: int) -> list[tuple[int, int]]:
        if len(self._stack) < count:
            raise ValueError(f"it needs {count} values, got {len(self._stack)}")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_mark(self) -> list[tuple[int, int]]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    @staticmethod
    def _tuple(items: list[tuple[int, int]]) -> tuple[int, int]:
        depth = 1 + max((depth for depth, _ in items), default=0)
        weight = 1 + sum(weight for _, weight in items)
        if depth > _DEEPEST or weight > _HEAVIEST:
            raise ValueError(
                f"a tuple {depth} deep with {weight} elements, expected at most {_DEEPEST} and "
                f"{_HEAVIEST}"
            )
        return depth, weight


class _TensorUnpickler(Unpickler):
    """Gives out storages without memory."""

    def __init__(self, data: bytes, accept: Callable[[StorageRequest], None]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._accept = accept
        self.places: dict[int, Place] = {}
        self.requests: dict[str, StorageRequest] = {}
        self.storages: dict[object, torch.UntypedStorage] = {}

    def persistent_load(self, pid: object) -> torch.storage.TypedStorage:
        request = _request(pid)
        known = self.requests.setdefault(request.key, request)
        if known.dtype != request.dtype or known.numel != request.numel:
            raise ValueError(
                f"storage {request.key!r} has {request.numel} {request.dtype} here, "
                f"{known.numel} {known.dtype} before"
            )
        self._accept(request)
        name = request.view or request.key
        _, offset, numel = request.view or (request.key, 0, request.numel)
        if name not in self.storages:
            storage = _UntypedStorage(numel * request.dtype.itemsize, device="meta")
            self.storages[name] = storage
            self.places[storage._cdata] = Place(known, offset)
        return cast(
            torch.storage.TypedStorage,
            _TypedStorage(wrap_storage=self.storages[name], dtype=request.dtype, _internal=True),
        )


def unpickle(source: Pickle, accept: Callable[[StorageRequest], None]) -> Unpickled:
    """Runs a pickle.

    Args:
        source: the pickle.
        accept: told of every storage; raises ValueError where the file has no such bytes.

    Raises:
        ValueError: it asks for anything but tensors and plain containers, or for impossible ones.
    """
    if any(name.startswith("dormant.recipes.") for name in source.asks_for):
        raise ValueError(
            f"open_checkpoint: {source.where} is a recipe, which says how to make tensors; "
            "expected their values. Load it with dormant.load_recipe."
        )
    unpickler = _TensorUnpickler(source.data, accept)
    try:
        with unrecorded():
            value = cast(Any, unpickler).load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"open_checkpoint: {source.where} is refused by weights-only loading"
            f"{_offset_of(error, source)}: {_first_sentence(error)}. Expected tensors and plain "
            "containers. Whoever trusts the file can allow what it asks for with "
            "torch.serialization.add_safe_globals, or load it with torch.load and save its tensors."
        ) from error
    # A hostile pickle calls the functions that rebuild tensors with anything at all.
    except Exception as error:
        raise ValueError(
            f"open_checkpoint: {source.where} makes no tensors: {type(error).__name__}: {error}. "
            "The file is damaged."
        ) from error
    return Unpickled(value, unpickler.places, unpickler.requests, list(unpickler.storages.values()))


def plain(source: Pickle) -> Any:
    """Runs a pickle without tensors.

    Raises:
        ValueError: it has tensors, or asks for anything else.
    """

    def refuse(request: StorageRequest) -> None:
        raise ValueError(f"it refers to storage {request.key!r}, expected none")

    return unpickle(source, refuse).value


def _request(pid: object) -> StorageRequest:
    """Reads a reference to a storage, which has five fields, six in the older layout."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6):
        raise ValueError(f"a reference to a storage is {describe(pid)}, expected a tuple of 5 or 6")
    kind, key, location, numel = pid[1:5]
    dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a storage has type {describe(kind)}, expected one of PyTorch's")
    if not isinstance(key, str):
        raise ValueError(f"a storage has key {describe(key)}, expected text")
    if type(numel) is not int or numel < 0:
        raise ValueError(f"storage {key!r} has {describe(numel)} elements")
    if not isinstance(location, str):
        raise ValueError(f"storage {key!r} is of device {describe(location)}, expected text")
    return StorageRequest(key, dtype, numel, location, _view(pid, key, numel))


def _view(pid: tuple[Any, ...], key: str, numel: int) -> tuple[str, int, int] | None:
    if len(pid) == 5 or pid[5] is None:
        return None
    view = pid[5]
    if (
        not isinstance(view, tuple)
        or len(view) != 3
        or not isinstance(view[0], str)
        or any(type(number) is not int or number < 0 for number in view[1:])
    ):
        raise ValueError(f"a view of storage {key!r} is {describe(view)}")
    if view[1] + view[2] > numel:
        raise ValueError(
            f"a view of storage {key!r} ends at element {view[1] + view[2]}, the storage has "
            f"{numel}"
        )
    return view


def describe(value: object) -> str:
    """A short text for messages; of containers, whose own could take for ever, only the type."""
    text = f"{type(value).__name__}"
    return f"{text} {value!r:.60}" if isinstance(value, int | str | bytes) else text


def _offset_of(error: Exception, source: Pickle) -> str:
    """Where the pickle asks for what the unpickler refuses, as far as the message tells."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    for name, offset in source.asks_for.items():
        if named is not None and name.endswith(named[1]):
            return f" at its byte {offset}"
    return ""


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].strip().rstrip(".")
