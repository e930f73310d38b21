"""What a pickle says, as values that do nothing: classes and functions are names, calls are notes.

Nothing that a pickle asks for is imported or called, whoever wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dormant._extension import _C


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names.

    Attributes:
        module: where it would be imported from.
        name: what it is called there.
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
    """What a pickle refers to and does not hold, such as a storage.

    Attributes:
        value: what the program that wrote it calls the object.
    """

    value: Any

    __hash__ = object.__hash__


@dataclass(eq=False)
class Record:
    """An object of a class that is not made: what the pickle would make it from.

    Attributes:
        callable: what would be called, a `Global` in all but odd pickles.
        arguments: what it would be called with.
        keywords: arguments by name.
        state: what would become the object's state: of most objects, a dict of its attributes.
        items: what would be appended to it, as to a list.
        entries: (key, value) that would be set in it, as in a dict.
        is_new: whether it would be made by the class's `__new__`, without `__init__`.
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
        """The class of the object, also where it would be made by a function of copyreg."""
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
    """What a pickle holds, in any protocol: nothing is imported, and nothing is called.

    Args:
        data: its bytes.
        where: names it in messages.

    Returns:
        None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset; `Global`
        for a class or function, `Record` for what a call would make, `PersistentId` for what lies
        elsewhere. What the pickle has once is one object; containers may contain themselves.

    Raises:
        ValueError: it is damaged, or no dict can have one of its keys.

    Example:
        >>> import pickle, datetime
        >>> from dormant.checkpoint.inert import read_pickle
        >>> read_pickle(pickle.dumps({"day": datetime.date(2024, 5, 1)}), "an example")
        {'day': <datetime.date(...)>}
    """
    return _C.parse_pickle(data, where, Global, Record, PersistentId)
