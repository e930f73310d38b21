"""Maps the names of a checkpoint's tensors to those of a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from dormant.text.printable import printable
from dormant.text.table import format_count

Rename = Mapping[str, str | None] | Callable[[str], str | None]
# A name, its shape in the checkpoint, and its shape in the model.
Mismatch: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]


class NamesError(KeyError):
    """A KeyError whose message is printed unchanged, on several lines.

    Attributes:
        missing_keys: names that the model has and the checkpoint does not.
        unexpected_keys: names that the checkpoint has and the model does not.
        mismatched_keys: names that both have, with the shape in the checkpoint and in the model.
    """

    def __init__(
        self,
        message: str,
        *,
        missing_keys: Iterable[str] = (),
        unexpected_keys: Iterable[str] = (),
        mismatched_keys: Iterable[Mismatch] = (),
    ) -> None:
        super().__init__(message)
        self.missing_keys = tuple(missing_keys)
        self.unexpected_keys = tuple(unexpected_keys)
        self.mismatched_keys = tuple(mismatched_keys)

    def __str__(self) -> str:
        return str(self.args[0])


def renaming(rename: Rename | None) -> Callable[[str], str | None]:
    """`rename` as a function.

    Args:
        rename: a function from a checkpoint's name to the model's name, or to None to leave the
            tensor out; or a mapping that does the same. Keys of the mapping that are "" or end with
            "." are prefixes; the longest prefix that matches is used if the name is not a key.

    Returns:
        The function. Names that the mapping does not contain stay as they are.

    Raises:
        TypeError: `rename` is neither a function nor a mapping.
    """
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        exact = dict(rename)
        for old, new in exact.items():
            if not isinstance(old, str) or not isinstance(new, str | None):
                raise TypeError(
                    f"load: rename must map names to names, or to None; got {old!r}: {new!r}."
                )
        prefixes = sorted((key for key in exact if key == "" or key.endswith(".")), key=len)[::-1]

        def look_up(name: str) -> str | None:
            if name in exact:
                return exact[name]
            prefix = next((key for key in prefixes if name.startswith(key)), None)
            new = "" if prefix is None else exact[prefix]
            return None if new is None else new + name[len(prefix or "") :]

        return look_up
    if not callable(rename):
        raise TypeError(
            "load: rename must be a mapping from names to names or a function of a name, got "
            f"{type(rename).__name__}."
        )
    return rename


def renamed(state: Mapping[str, Any], rename: Callable[[str], str | None]) -> dict[str, Any]:
    """`state` under the names that `rename` returns.

    Raises:
        TypeError: a name is not a string; or `rename` returned neither a string nor None.
        ValueError: two tensors got the same name.
    """
    result: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(
                f"load: the checkpoint has the name {name!r} of type {type(name).__name__}, "
                "expected str."
            )
        new = rename(name)
        if new is None:
            continue
        if not isinstance(new, str):
            raise TypeError(
                f"load: rename returned {type(new).__name__} for {name!r}, expected str or None."
            )
        if new in result:
            raise ValueError(
                f"load: rename gives {origin[new]!r} and {name!r} the same name {new!r}. Give them "
                "different names, or leave one out by renaming it to None."
            )
        result[new] = value
        origin[new] = name
    return result


def listed(title: str, lines: Iterable[str]) -> str:
    """A title and a line for each of `lines`; empty if there are none."""
    text = "".join(f"\n  {printable(line)}" for line in lines)
    return f"\n{title}:{text}" if text else ""


def grouped(names: Iterable[str]) -> list[str]:
    """Groups names that differ only in numbers: "layers.{0...31}.weight".

    Args:
        names: names whose parts between dots may be numbers.

    Returns:
        The groups in the order of their first names; together they are exactly `names`.
    """
    return [group for group, _ in grouped_counts(names)]


def grouped_counts(names: Iterable[str]) -> list[tuple[str, int]]:
    """The groups of `grouped`, each with the number of its names."""
    patterns: dict[tuple[str, ...], set[tuple[frozenset[int], ...]]] = {}
    for name in names:
        parts = [(part, part.isdecimal() and part == str(int(part))) for part in name.split(".")]
        pattern = tuple("" if is_number else f".{part}" for part, is_number in parts)
        numbers = tuple(frozenset((int(part),)) for part, is_number in parts if is_number)
        patterns.setdefault(pattern, set()).add(numbers)
    groups = []
    for pattern, boxes in patterns.items():
        for place in reversed(range(pattern.count(""))):
            merged: dict[tuple[frozenset[int], ...], frozenset[int]] = {}
            for box in boxes:
                rest = box[:place] + box[place + 1 :]
                merged[rest] = merged.get(rest, frozenset()) | box[place]
            boxes = {(*rest[:place], own, *rest[place:]) for rest, own in merged.items()}
        for box in sorted(boxes, key=lambda box: [sorted(numbers) for numbers in box]):
            texts = iter(map(_range, box))
            text = ".".join(part[1:] if part else next(texts) for part in pattern)
            groups.append((text, math.prod(map(len, box))))
    return groups


def _range(numbers: frozenset[int]) -> str:
    first, last = min(numbers), max(numbers)
    if first == last:
        return str(first)
    if len(numbers) == last - first + 1 > 2:
        return f"{{{first}...{last}}}"
    return f"{{{', '.join(map(str, sorted(numbers)))}}}"


def renamed_prefix(theirs: Sequence[str], ours: Collection[str]) -> str:
    """Proposes to rename one prefix, so that most of a checkpoint's names become the model's.

    Args:
        theirs: names that the model does not have.
        ours: names that the checkpoint does not have.

    Returns:
        A sentence that proposes the prefix; "" if no prefix helps at least half of `theirs`, or
        several prefixes help equally.
    """
    wanted = set(ours)
    votes = Counter(
        pair for name in theirs[:_LOOKED_AT] for pair in _prefixes_to_longest_ending(name, ours)
    )
    # Names that have only "weight" in common vote for as many pairs as the model has layers.
    fitting = {
        pair: sum(_with_prefix(name, *pair) in wanted for name in theirs)
        for pair, _ in votes.most_common(_TRIED)
    }
    most = max(fitting.values(), default=0)
    best = [pair for pair, count in fitting.items() if count == most]
    if len(best) != 1 or 2 * most < len(theirs):
        return ""
    old, new = best[0]
    return f"{most} of {format_count(len(theirs), 'name')} match with rename={{{old!r}: {new!r}}}."


# How many names of a checkpoint are compared with all names of the model.
_LOOKED_AT = 8
# How many pairs of prefixes are tried on all names.
_TRIED = 8


def _with_prefix(name: str, old: str, new: str) -> str | None:
    return new + name[len(old) :] if name.startswith(old) else None


def _prefixes_to_longest_ending(name: str, ours: Iterable[str]) -> set[tuple[str, str]]:
    """The parts of both names before the longest ending that `name` shares with any of `ours`."""
    longest = 0
    found: set[tuple[str, str]] = set()
    parts = name.split(".")
    for other in ours:
        others = other.split(".")
        shared = 0
        while shared < min(len(parts), len(others)) and parts[-1 - shared] == others[-1 - shared]:
            shared += 1
        if shared and shared >= longest:
            if shared > longest:
                longest, found = shared, set()
            heads = ("".join(f"{part}." for part in each[:-shared]) for each in (parts, others))
            found.add((next(heads), next(heads)))
    return found
