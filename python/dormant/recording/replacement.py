"""How a function is replaced so that who looks at it sees what was there before.

A function that Python defines stays the object that it is and only runs other code, so its
identity, `pickle`, `inspect`, the names that any module has bound it to, and what torch.compile and
torch.jit keep of it by identity stay right. A method that C defines is replaced for the objects of
its class only: who asks the class (torch.compile keeps such a list for good) gets the original.
Whatever else there is, functions of C in a module and classes, becomes another object for the time.
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
    """Puts `wrap(original)` in the place of `owner.name`.

    Args:
        owner: a module or class, which has the name.
        name: what is replaced.
        wrap: makes the replacement of the original, under which it can always be called.

    Returns:
        What takes it back; where somebody else has replaced it meanwhile, theirs stays.
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


# --- functions of Python ---


class _Code:
    """The two codes of a function, and what they do as functions of their own."""

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
# A code that is running, or somebody has kept, may ask for its replacement at any time.
_by_key: dict[int, _Code] = {}
_codes: weakref.WeakKeyDictionary[types.FunctionType, _Code] = weakref.WeakKeyDictionary()


def call(key: int, *args: Any, **kwargs: Any) -> Any:
    """What a function whose code is exchanged runs."""
    code = _by_key[key]
    # What torch.compile traces is the original. Unlike is_compiling, which is true for all threads
    # while one compiles, this is true only where dynamo reads this very line.
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
    """Code with the parameters of `code` that gives them to `call`; looked at, it is `code`'s."""
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
    # It has the same variables of the function around it, since a function can only be given code
    # with as many; named where nothing runs, so that a debugger that looks at the frame finds them.
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


# --- methods of C, and inherited ones ---


class _ForObjects:
    """Stands in a class for a method: objects get the replacement, the class gets the original."""

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
    # A module that is imported meanwhile binds what stands for the original elsewhere.
    _, original = _in_place.get(id(found), (found, found))
    replacement = wrap(original)
    if isinstance(replacement, types.FunctionType):
        # Pickled by reference, it is what the other process finds there.
        replacement.__module__ = owner.__name__
        replacement.__qualname__ = name
        # torch.compile takes it for this (torch/_dynamo/utils.py, unwrap_if_wrapper).
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
            return  # wrapped by someone else meanwhile, who still calls ours
        if before is None:
            delattr(owner, name)  # it was inherited
        else:
            setattr(owner, name, before)

    return undo
