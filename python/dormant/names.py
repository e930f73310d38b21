"""The names of a checkpoint's tensors, brought to those of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Rename = Mapping[str, str] | Callable[[str], str | None]


class NamesError(KeyError):
    """A KeyError whose message prints as it is, on several lines."""

    def __str__(self) -> str:
        return str(self.args[0])


def renaming(rename: Rename | None) -> Callable[[str], str | None]:
    """`rename` as a function.

    Args:
        rename: a function from a checkpoint's name to the model's, or to None for a tensor that is
            to be left out; or a mapping, in which a name that is not there itself is looked up by
            its longest beginning that is there, is "" or ends with ".".

    Returns:
        The function; names that the mapping does not mention stay as they are.

    Raises:
        TypeError: `rename` is neither.
    """
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        exact = dict(rename)
        if not all(isinstance(part, str) for pair in exact.items() for part in pair):
            raise TypeError("load: rename must map str to str.")
        prefixes = sorted((key for key in exact if key == "" or key.endswith(".")), key=len)[::-1]

        def look_up(name: str) -> str:
            if name in exact:
                return exact[name]
            prefix = next((key for key in prefixes if name.startswith(key)), None)
            return name if prefix is None else exact[prefix] + name[len(prefix) :]

        return look_up
    if not callable(rename):
        raise TypeError(
            "load: rename must be a mapping of names or a function of a name, got "
            f"{type(rename).__name__}."
        )
    return rename


def renamed(state: Mapping[str, Any], rename: Callable[[str], str | None]) -> dict[str, Any]:
    """`state` under the names that `rename` gives.

    Raises:
        TypeError: `rename` gave something else than a name or None.
        ValueError: two tensors got one name.
    """
    result: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in state.items():
        new = rename(name)
        if new is None:
            continue
        if not isinstance(new, str):
            raise TypeError(
                f"load: rename gave {type(new).__name__} for {name!r}, expected str or None."
            )
        if new in result:
            raise ValueError(
                f"load: rename gives {origin[new]!r} and {name!r} the same name {new!r}. Rename "
                "them apart, or leave one out by a function that returns None for it."
            )
        result[new] = value
        origin[new] = name
    return result


def listed(title: str, lines: Iterable[str]) -> str:
    """A title and a line for each of `lines`, or nothing where there are none."""
    text = "".join(f"\n  {line}" for line in lines)
    return f"\n{title}:{text}" if text else ""
