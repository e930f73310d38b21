"""The contents of a file of torch.save besides its tensors, as Python values.

Objects of plain classes are shown as values: containers, numbers, dates, paths, numpy arrays. The
tables below list these classes; a file cannot add to them. Everything else stays a `Record`, which
may contain lazy tensors.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import fractions
import math
import pathlib
import re
import sys
import uuid
from collections.abc import Callable
from typing import Any, cast

import torch
from torch._weights_only_unpickler import _get_user_allowed_globals

from dormant._extension import _C
from dormant.checkpoint.inert import Global, PersistentId, Record

_DEEPEST = 200

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}
# Classes that a defaultdict may call.
_FACTORIES = {
    f"builtins.{kind.__name__}": kind for kind in (list, dict, set, tuple, int, float, str, bool)
}


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which pickles before protocol 3 store as text."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise ValueError(encoding)
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _bytearray(source: Any = b"", encoding: str = "latin-1") -> bytearray:
    return bytearray(source if isinstance(source, bytes) else source.encode(encoding))


def _default_dict(factory: Any = None) -> Any:
    return collections.defaultdict(_FACTORIES.get(str(factory)))


def _posix_path(*parts: str) -> pathlib.PurePath:
    return (pathlib.PurePosixPath if sys.platform == "win32" else pathlib.Path)(*parts)


def _layout(name: str) -> torch.layout:
    return _LAYOUTS[name]


def _of_items(kind: Callable[..., Any]) -> Callable[..., Any]:
    """`kind` of a list or tuple: a range could have any number of items."""

    def make(items: Any = (), *rest: Any) -> Any:
        if not isinstance(items, list | tuple):
            raise TypeError(items)
        return kind(items, *rest)

    return make


def _slice(*bounds: Any) -> slice:
    if not all(bound is None or type(bound) is int for bound in bounds):
        raise TypeError(bounds)  # nested values are hashed for each path to them
    return slice(*bounds)


def _fraction(numerator: Any, denominator: Any = None) -> fractions.Fraction:
    if isinstance(numerator, str) and not re.fullmatch(r"-?\d{1,4300}(/\d{1,4300})?", numerator):
        raise ValueError(numerator)  # 1e999999999 has as many digits
    return fractions.Fraction(numerator, denominator)


# Values that are made from arguments; each function checks them, or accepts only harmless ones.
_MADE: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _no_bytes,
    "builtins.complex": complex,
    "builtins.frozenset": _of_items(frozenset),
    "builtins.set": _of_items(set),
    "builtins.slice": _slice,
    "builtins.range": range,
    "collections.Counter": collections.Counter,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _default_dict,
    "collections.deque": _of_items(collections.deque),
    "datetime.date": datetime.date,
    "datetime.datetime": datetime.datetime,
    "datetime.time": datetime.time,
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "decimal.Decimal": decimal.Decimal,
    "fractions.Fraction": _fraction,
    **{
        f"{module}.{name}": make
        for module in ("pathlib", "pathlib._local")  # since Python 3.13
        for name, make in (
            ("PosixPath", _posix_path),
            ("PurePosixPath", pathlib.PurePosixPath),
            ("WindowsPath", pathlib.PureWindowsPath),
            ("PureWindowsPath", pathlib.PureWindowsPath),
        )
    },
    "torch.Size": _of_items(torch.Size),
    "torch.device": torch.device,
    "torch.serialization._get_layout": _layout,
}
# A call creates an empty one of these, which is filled afterwards, so they may contain themselves.
_FILLED = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter"})
_ERRORS = (TypeError, ValueError, KeyError, OverflowError, ArithmeticError, AttributeError)


def allowed_by_user() -> dict[str, Any]:
    """Classes and functions that were passed to torch.serialization.add_safe_globals, by name."""
    return dict(cast(Any, _get_user_allowed_globals)())


class Values:
    """The objects of an archive, with lazy tensors in them.

    Args:
        archive: the file.
        make: makes a lazy tensor, given its number in the archive.
        allowed: classes that the user trusts, by name; their objects are created.
        strict: refuses objects that would differ from those of `torch.load`.
        where: the name of the file in messages.
    """

    def __init__(
        self,
        archive: _C.TorchArchive,
        make: Callable[[int], Any],
        allowed: dict[str, Any],
        where: str,
        *,
        strict: bool = False,
    ) -> None:
        self.objects = archive.values(Global, Record, PersistentId)
        self._numbers = {id(self.objects[number]): number for number in archive.tensors()}
        self._make = make
        self._allowed = allowed
        self._strict = strict
        self._where = where
        self._done: dict[int, Any] = {}

    def value(self, number: int) -> Any:
        """The object of this number, with all that it contains."""
        try:
            return self._value(self.objects[number], 0)
        except NotImplementedError:
            raise
        except (*_ERRORS, RecursionError) as error:
            if str(error).startswith("open_checkpoint: "):
                raise
            raise self._damaged(error) from error

    def key(self, number: int) -> Any:
        """`value` for an object that is the key of a mapping."""
        found = self.value(number)
        try:
            hash(found)
        except TypeError as error:
            raise self._damaged(error) from error
        return found

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(
            f"open_checkpoint: {self._where} cannot be created: {type(error).__name__}: "
            f"{error!s:.200}. The file is damaged."
        )

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, Global):
            return _DTYPES.get(str(value)) or _LAYOUTS.get(str(value)) or self._class(value)
        if not isinstance(value, list | tuple | dict | set | frozenset | Record | PersistentId):
            return value
        if depth > _DEEPEST:
            raise ValueError(
                f"open_checkpoint: {self._where} nests containers deeper than {_DEEPEST}. Load it "
                "with torch.load."
            )
        known = self._done.get(id(value), self)
        if known is not self:
            return known
        made = self._container(value, depth + 1)
        self._done[id(value)] = made
        return made

    def _container(self, value: Any, depth: int) -> Any:
        copy: Any
        if isinstance(value, list):
            copy = self._done[id(value)] = []
            copy.extend(self._value(item, depth) for item in value)
            return copy
        if isinstance(value, dict):
            copy = self._done[id(value)] = {}
            for key, item in value.items():
                copy[self._value(key, depth)] = self._value(item, depth)
            return copy
        if isinstance(value, tuple | set | frozenset):
            return type(value)([self._value(item, depth) for item in value])
        if isinstance(value, PersistentId):
            fields = value.value
            if isinstance(fields, tuple) and len(fields) == 4 and fields[0] == "module":
                return self._value(fields[1], depth)  # a class, in the older layout with its source
            return self._opaque(value, "a storage without a tensor")
        if (number := self._numbers.get(id(value))) is not None:
            try:
                return self._make(number)
            except NotImplementedError:
                if self._strict:
                    raise
                return self._record(value, depth)
        name = str(value.callable)
        if name in self._allowed:
            return self._trusted(value, self._allowed[name], depth)
        if name in _FILLED:
            return self._filled(value, _MADE[name], depth)
        if (make := _MADE.get(name) or _numpy(name)) is not None:
            try:
                return self._made(value, make, depth)
            except NotImplementedError:
                raise
            except (*_ERRORS, RuntimeError):
                pass  # not what the class itself writes
        if name == "uuid.UUID" and isinstance(value.state, dict):
            with contextlib.suppress(*_ERRORS):
                return uuid.UUID(int=value.state["int"])
        return self._record(value, depth)

    def _made(self, value: Record, make: Callable[..., Any], depth: int) -> Any:
        made = make(*(self._value(item, depth) for item in value.arguments))
        if value.keywords:
            raise TypeError(value.keywords)
        if value.items:  # of a deque
            made.extend(self._value(item, depth) for item in value.items)
        if value.state is not None and _is_numpy(made):
            made = _with_state(made, self._value(value.state, depth))
        return made

    def _filled(self, value: Record, make: Callable[..., Any], depth: int) -> Any:
        copy = make() if make is not _default_dict else make(*value.arguments[:1])
        self._done[id(value)] = copy
        if make is not _default_dict:
            for first in value.arguments[:1]:
                pairs = first.items() if isinstance(first, dict) else first
                for key, item in pairs:
                    copy[self._value(key, depth)] = self._value(item, depth)
        for key, item in value.entries:
            copy[self._value(key, depth)] = self._value(item, depth)
        if (found := versions(value, self)) is not None:
            copy._metadata = found
        return copy

    def _trusted(self, value: Record, make: Any, depth: int) -> Any:
        """An object of a class that the user allows."""
        arguments = [self._value(item, depth) for item in value.arguments]
        keywords = {name: self._value(item, depth) for name, item in value.keywords.items()}
        made = make.__new__(make, *arguments, **keywords) if value.is_new else make(*arguments)
        self._done[id(value)] = made
        if value.items:
            made.extend(self._value(item, depth) for item in value.items)
        for key, item in value.entries:
            made[self._value(key, depth)] = self._value(item, depth)
        if value.state is not None:
            state = self._value(value.state, depth)
            if hasattr(made, "__setstate__"):
                made.__setstate__(state)
            else:
                vars(made).update(state)
        return made

    def _record(self, value: Record, depth: int) -> Any:
        copy = self._done[id(value)] = Record(value.callable, is_new=value.is_new)
        self._opaque(copy, f"an object of {value.class_}")
        copy.callable = self._value(value.callable, depth)
        copy.arguments = tuple(self._value(item, depth) for item in value.arguments)
        copy.keywords = self._value(value.keywords, depth)
        copy.state = self._value(value.state, depth)
        copy.items = [self._value(item, depth) for item in value.items]
        copy.entries = [(self._value(k, depth), self._value(v, depth)) for k, v in value.entries]
        return copy

    def _class(self, value: Global) -> Any:
        return self._allowed[str(value)] if str(value) in self._allowed else self._opaque(value)

    def _opaque(self, value: Any, what: str | None = None) -> Any:
        if self._strict:
            raise NotImplementedError(
                f"open_checkpoint: {self._where} has {what or value}, expected tensors and plain "
                "containers. Load it with torch.load."
            )
        return value


def versions(mapping: Any, values: Values) -> dict[str, Any] | None:
    """A state dict's versions of modules, if it has them."""
    state = mapping.state if isinstance(mapping, Record) else None
    found = state.get("_metadata") if isinstance(state, dict) else None
    if not isinstance(found, dict | Record):
        return None
    facts = values._value(found, 0)
    if not isinstance(facts, dict):
        return None
    return {
        name: dict(each)
        for name, each in facts.items()
        if isinstance(name, str) and isinstance(each, dict)
    }


def module_versions(modules: list[tuple[str, str]]) -> dict[str, Any]:
    """The versions that `state_dict()` would give for a pickled module's parts, as far as known.

    Versions are attributes of the classes; those of torch.nn are already loaded.
    """
    found: dict[str, Any] = {}
    for name, class_name in modules:
        module, _, attribute = class_name.rpartition(".")
        kind = getattr(sys.modules.get(module), attribute, None) if _is_torch(module) else None
        is_module = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
        found[name] = {"version": kind._version} if is_module else {}  # type: ignore[union-attr]
    return found


def _is_torch(module: str) -> bool:
    return module.startswith("torch.nn.modules.")


# numpy is optional: if it is not installed, its values stay records.


def _numpy(name: str) -> Callable[..., Any] | None:
    module, _, attribute = name.rpartition(".")
    module = module.replace("numpy._core.", "numpy.core.")
    functions: dict[str, Callable[..., Any]] = {
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy.core.multiarray._reconstruct": _numpy_array,
        "numpy.core.numeric._frombuffer": _numpy_from_buffer,
        "numpy.dtype": _numpy_dtype,
    }
    found = functions.get(f"{module}.{attribute}")
    if found is None:
        return None
    try:
        import numpy  # noqa: F401
    except ImportError:
        return None
    return found


def _is_numpy(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "numpy"


def _numpy_dtype(name: Any, align: bool = False, copy: bool = True) -> Any:
    """A dtype of numbers, text or bytes; dtypes of objects or records are refused."""
    import numpy as np

    if not isinstance(name, str) or len(name) > 16:
        raise ValueError(name)
    dtype = np.dtype(name)
    if dtype.kind not in "biufcSU" or dtype.fields is not None or dtype.subdtype is not None:
        raise ValueError(name)
    return dtype


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    import numpy as np

    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        raise TypeError(dtype)
    if len(data) != dtype.itemsize:
        raise ValueError(len(data))
    return np.frombuffer(data, dtype, 1)[0]


def _numpy_array(kind: Any, shape: Any, code: Any) -> Any:
    """An object of class ndarray; everything else is in its state."""
    import numpy as np

    if str(kind) != "numpy.ndarray":
        raise TypeError(kind)
    return np.empty(0, np.uint8)


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> Any:
    return _array(shape, dtype, order == "F", bytes(data))


def _with_state(value: Any, state: Any) -> Any:
    """An array or a dtype with the state that it was pickled with."""
    import numpy as np

    if isinstance(value, np.dtype):
        # (version, byte order, subdtype, names, fields, size, alignment, flags[, metadata])
        if state[2] is not None or state[3] is not None or state[4] is not None:
            raise ValueError(state)
        order = state[1] if state[1] in ("<", ">", "|", "=") else None
        if order is None:
            raise ValueError(state)
        return value.newbyteorder(order) if order in ("<", ">") else value
    if isinstance(value, np.ndarray):
        _, shape, dtype, fortran, data = state
        return _array(shape, dtype, bool(fortran), data)
    raise TypeError(value)


def _array(shape: Any, dtype: Any, fortran: bool, data: Any) -> Any:
    import numpy as np

    sizes = tuple(shape)
    if (
        not isinstance(dtype, np.dtype)
        or dtype.kind == "O"
        or not isinstance(data, bytes)
        or not all(type(size) is int and size >= 0 for size in sizes)
        or math.prod(sizes) * dtype.itemsize != len(data)
    ):
        raise ValueError(shape)
    # A copy, as the array of a pickle can be written to.
    return np.frombuffer(data, dtype).reshape(sizes, order="F" if fortran else "C").copy("K")
