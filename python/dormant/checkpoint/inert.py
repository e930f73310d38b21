"""The contents of a pickle as inert values: classes and functions are names, calls are records.

Nothing that a pickle names is imported or called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dormant._extension import _C


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names.

    Attributes:
        module: the module that it would be imported from.
        name: its name in the module.
    """

    module: str
    name: str

    def __repr__(self) -> str:
        """Its full name."""
        return f"<{self}>"

    def __str__(self) -> str:
        """Its full name."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class PersistentId:
    """An object that a pickle refers to and does not contain, such as a storage.

    Attributes:
        value: the identifier that the writing program uses for the object.
    """

    value: Any

    __hash__ = object.__hash__


@dataclass(eq=False)
class Record:
    """An object that is not created: a record of what the pickle would create it from.

    Attributes:
        callable: what would be called; a `Global` except in unusual pickles.
        arguments: its positional arguments.
        keywords: its keyword arguments.
        state: the state that the object would get; for most objects, a dict of its attributes.
        items: values that would be appended to it, as to a list.
        entries: (key, value) pairs that would be set in it, as in a dict.
        is_new: whether it would be created by the class's `__new__`, without `__init__`.
    """

    callable: Any
    arguments: tuple[Any, ...] = ()
    keywords: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: list[tuple[Any, Any]] = field(default_factory=list)
    is_new: bool = False

    @property
    def class_(self) -> Any:
        """The class of the object, even if a function of copyreg would create it."""
        name = str(self.callable)
        if name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
            return self.arguments[0] if self.arguments else self.callable
        return self.callable

    def __repr__(self) -> str:
        """Its class, and the names of its attributes."""
        names = [f"{name}=..." for name in self.state] if isinstance(self.state, dict) else []
        shown = [*(["..."] if self.arguments else []), *names[:8], *(["..."] if names[8:] else [])]
        return f"<{self.class_}({', '.join(shown)})>"


def read_pickle(data: bytes, where: str) -> Any:
    """Reads a pickle of any protocol as data: nothing is imported, and nothing is called.

    Args:
        data: its bytes.
        where: its name in messages.

    Returns:
        None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset; `Global`
        for a class or function, `Record` for the result of a call, `PersistentId` for an object
        that is stored elsewhere. An object that occurs once in the pickle is one object here;
        containers may contain themselves.

    Raises:
        ValueError: the pickle is damaged, or has a key that a dict cannot have.

    Example:
        >>> import pickle, datetime
        >>> from dormant.checkpoint.inert import read_pickle
        >>> read_pickle(pickle.dumps({"day": datetime.date(2024, 5, 1)}), "an example")
        {'day': <datetime.date(...)>}
    """
    return _C.parse_pickle(data, where, Global, Record, PersistentId)
