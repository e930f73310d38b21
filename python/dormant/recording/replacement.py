"""Replaces a function so that code that inspects it sees the original.

A Python function stays the same object and only runs other code, so its identity, `pickle`,
`inspect`, the names that any module has bound it to, and the tables of torch.compile and torch.jit
stay correct. A method implemented in C is replaced only for the objects of its class: access
through the class (torch.compile keeps such a list permanently) gives the original. Anything else,
such as C functions in a module and classes, temporarily becomes another object.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
Undo = Callable[[], None]


def replace(owner: Any, name: str, wrap: Wrap) -> Undo:
    """Replaces `owner.name` by `wrap(original)`.

    Args:
        owner: a module or class that has the name.
        name: the name of the function.
        wrap: returns the replacement of the original, which the replacement can always call.

    Returns:
        A function that restores the original, unless other code has replaced it in the meantime.
    """
    own = vars(owner).get(name)
    if isinstance(own, (classmethod, staticmethod)):
        own = own.__func__
    if isinstance(own, types.FunctionType):
        return _exchange_code(own, wrap)
    found = inspect.getattr_static(owner, name)
    if isinstance(owner, type) and isinstance(
        found, (types.FunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
    ):
        return _set(owner, name, _ForObjects(found, wrap(getattr(owner, name))), own)
    return _rebind(owner, name, wrap)


# --- Python functions ---


class _Code:
    """The two code objects of a function, each also as a separate function."""

    def __init__(self, function: types.FunctionType, wrap: Wrap) -> None:
        self.code = function.__code__
        original = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        functools.update_wrapper(original, function)
        del original.__wrapped__  # type: ignore[attr-defined]
        original.__kwdefaults__ = function.__kwdefaults__
        self.original: Function = original
        self.wrap = wrap
        self.replacement = wrap(original)
        key = next(_keys)
        _by_key[key] = self
        self.other_code = _calling(key, self.code)


_keys = itertools.count()
# Code that is running, or that was kept elsewhere, may need its replacement at any time.
_by_key: dict[int, _Code] = {}
_codes: weakref.WeakKeyDictionary[types.FunctionType, _Code] = weakref.WeakKeyDictionary()


def call(key: int, *args: Any, **kwargs: Any) -> Any:
    """Runs the original or the replacement, for a function whose code was exchanged."""
    code = _by_key[key]
    # torch.compile traces the original. Unlike is_compiling, which is true for all threads while
    # one compiles, this is true only if dynamo reads this very line.
    return (code.original if torch.compiler.is_dynamo_compiling() else code.replacement)(
        *args, **kwargs
    )


def _exchange_code(function: types.FunctionType, wrap: Wrap) -> Undo:
    known = _codes.get(function)
    if known is None or known.code is not function.__code__ or known.wrap is not wrap:
        known = _codes[function] = _Code(function, wrap)
    code = known
    function.__code__ = code.other_code

    def undo() -> None:
        if function.__code__ is code.other_code:
            function.__code__ = code.code

    return undo


def _calling(key: int, code: types.CodeType) -> types.CodeType:
    """Code with the parameters of `code` that passes them to `call`, and looks like `code`."""
    names = iter(code.co_varnames)
    positional = list(itertools.islice(names, code.co_argcount))
    only_by_name = list(itertools.islice(names, code.co_kwonlyargcount))
    several = [f"*{next(names)}"] if code.co_flags & inspect.CO_VARARGS else []
    named = [f"**{next(names)}"] if code.co_flags & inspect.CO_VARKEYWORDS else []
    declared = [
        *positional[: code.co_posonlyargcount],
        *(["/"] if code.co_posonlyargcount else []),
        *positional[code.co_posonlyargcount :],
        *(several or (["*"] if only_by_name else [])),
        *only_by_name,
        *named,
    ]
    given = [*positional, *several, *(f"{name}={name}" for name in only_by_name), *named]
    # It has the same free variables, because a function can only be given code with as many. They
    # are named in a branch that never runs, so that a debugger finds them in the frame.
    free = ", ".join(code.co_freevars)
    source = (
        f"def around({free}):\n"
        f" def stand_in({', '.join(declared)}):\n"
        f"  if 0: ({free})\n"
        f"  from {__name__} import call\n"
        f"  return call({', '.join([str(key), *given])})\n"
        f" return stand_in\n"
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, code.co_filename, "exec", dont_inherit=True), namespace)
    made: types.CodeType = namespace["around"](*code.co_freevars).__code__
    names_too = {"co_qualname": code.co_qualname} if sys.version_info >= (3, 11) else {}
    return made.replace(
        co_name=code.co_name,
        co_firstlineno=code.co_firstlineno,
        **names_too,  # type: ignore[arg-type]
    )


# --- methods implemented in C, and inherited methods ---


class _ForObjects:
    """Replaces a method in a class: objects get the replacement, the class gets the original."""

    def __init__(self, original: Any, replacement: Function) -> None:
        self._original = original
        self._replacement = replacement

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self._original.__get__(None, owner)
        return types.MethodType(self._replacement, instance)


# --- anything else ---

_in_place: dict[int, tuple[Any, Any]] = {}  # id of a replacement: it and its original


def _rebind(owner: Any, name: str, wrap: Wrap) -> Undo:
    found = getattr(owner, name)
    # A module that is imported in the meantime may have bound the replacement.
    _, original = _in_place.get(id(found), (found, found))
    replacement = wrap(original)
    if isinstance(replacement, types.FunctionType):
        # It is pickled by reference, and another process finds the original under this name.
        replacement.__module__ = owner.__name__
        replacement.__qualname__ = name
        # torch.compile unwraps this attribute (torch/_dynamo/utils.py, unwrap_if_wrapper).
        replacement._torchdynamo_inline = original  # type: ignore[attr-defined]
    before = frozenset(sys.modules)
    set_back = _set(owner, name, replacement, original if name in vars(owner) else None)
    _in_place[id(replacement)] = replacement, original

    def undo() -> None:
        set_back()
        del _in_place[id(replacement)]
        for module in [sys.modules[key] for key in set(sys.modules) - before | {"__main__"}]:
            if isinstance(module, types.ModuleType):
                for bound, value in list(vars(module).items()):
                    if value is replacement:
                        setattr(module, bound, original)

    return undo


def _set(owner: Any, name: str, value: Any, before: Any) -> Undo:
    setattr(owner, name, value)

    def undo() -> None:
        if vars(owner).get(name) is not value:
            return  # other code has wrapped it in the meantime and still calls ours
        if before is None:
            delattr(owner, name)  # it was inherited
        else:
            setattr(owner, name, before)

    return undo
