"""Tensors that are made from several: merged from parts, joined, summed, converted for a model.

A checkpoint keeps how to make the tensor of a name, and makes a new one for each access, because it
must not keep materialized tensors alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dormant.checkpoint.entry import Entry, Item
from dormant.checkpoint.pretrained import Naming, Step, find_conversion
from dormant.tensor_parallel.rules import Rules, llama_rules
from dormant.tensor_parallel.sets import apply_diffs, merge
from dormant.text.table import format_count


@dataclass(frozen=True)
class _Merged:
    """A tensor of which tensor-parallel ranks have parts."""

    name: str
    parts: tuple[Item, ...]
    rules: Rules
    entry: Entry

    def tensor(self) -> torch.Tensor:
        parts = [{self.name: part.tensor()} for part in self.parts]
        return merge(parts, rules=self.rules, check=False)[self.name]


@dataclass(frozen=True)
class _Sum:
    """A tensor and the differences that are added to it."""

    name: str
    base: Item
    differences: tuple[Item, ...]
    entry: Entry

    def tensor(self) -> torch.Tensor:
        differences = [{self.name: item.tensor()} for item in self.differences]
        return apply_diffs({self.name: self.base.tensor()}, differences)[self.name]


@dataclass(frozen=True)
class _Converted:
    """A tensor that a rule of transformers makes from several, or from one in another layout."""

    name: str
    step: Step
    model: torch.nn.Module
    parts: Mapping[str, Item]
    entry: Entry

    def tensor(self) -> torch.Tensor:
        parts = {name: part.tensor() for name, part in self.parts.items()}
        made: torch.Tensor = self.step.apply(self.model, parts, "for_model")[self.name]
        return made


def converted(
    items: Mapping[str, Item], model: torch.nn.Module, naming: Naming | None = None
) -> dict[str, Item] | None:
    """`items` under the names and in the layouts of a model; None if they already have them.

    Raises:
        ValueError: as by `find_conversion` and `Conversion.apply`.
    """
    shapes = {name: item.entry.shape for name, item in items.items()}
    conversion = find_conversion(model, shapes, "for_model", naming)
    if conversion is None:
        return None
    # Converting all of them once checks everything; the tensors are not kept.
    tensors = {name: item.tensor() for name, item in items.items()}
    made, makers = conversion.apply(model, tensors, "for_model")
    found: dict[str, Item] = {}
    for name, step in makers.items():
        parts = {each: items[each] for each in step.origins}
        found[name] = (
            parts[step.origins[0]]
            if step.rule is None
            else _Converted(name, step, model, parts, _whole(made[name], parts.values()))
        )
    return found


def merged_parts(ranks: Sequence[Mapping[str, Item]], rules: Rules | None) -> dict[str, Item]:
    """The whole tensors, merged from the parts of all ranks.

    Raises:
        ValueError: as by `dormant.tensor_parallel.merge`.
        KeyError: likewise.
    """
    # Merging all of them once checks everything; the tensors are not kept.
    parts = [{name: item.tensor() for name, item in items.items()} for items in ranks]
    rules = llama_rules(parts) if rules is None else rules
    return {
        name: _Merged(
            name,
            (items := tuple(each[name] for each in ranks)),
            rules,
            _whole(whole, items),
        )
        for name, whole in merge(parts, rules=rules).items()
    }


def _whole(tensor: torch.Tensor, parts: Iterable[Item]) -> Entry:
    return Entry(
        dtype=tensor.dtype,
        shape=tuple(tensor.shape),
        nbytes=tensor.numel() * tensor.element_size(),
        file=None,
        offset=None,
        parts=tuple(part.entry for part in parts),
    )


def join(items: dict[str, Item], more: dict[str, Item]) -> None:
    """Adds `more` to `items`.

    Raises:
        ValueError: both have the same name.
    """
    twice = [
        f"{name!r} in {_home(items[name].entry)} and {_home(more[name].entry)}"
        for name in more
        if name in items
    ]
    if twice:
        raise ValueError(
            f"open_checkpoint: found {format_count(len(twice), 'tensor')} in two of the paths: "
            f"{'; '.join(twice[:20])}. Open each checkpoint separately and combine the mappings; "
            "the later one replaces the earlier: {**dict(first), **dict(second)}."
        )
    items.update(more)


def add_differences(items: dict[str, Item], differences: dict[str, Item]) -> None:
    """Adds `differences` to `items`; a new name is taken unchanged.

    Raises:
        ValueError: shapes differ.
    """
    wrong = [
        f"{name!r} has shape {difference.entry.shape} in {_home(difference.entry)}, "
        f"expected {items[name].entry.shape}"
        for name, difference in differences.items()
        if name in items and items[name].entry.shape != difference.entry.shape
    ]
    if wrong:
        raise ValueError(
            f"open_checkpoint: the shapes of {format_count(len(wrong), 'difference')} do not match "
            f"the base: {'; '.join(wrong)}. Check that the differences belong to this model."
        )
    for name, difference in differences.items():
        base = items.get(name)
        if base is None:
            items[name] = difference
            continue
        earlier = (base.base, *base.differences) if isinstance(base, _Sum) else (base,)
        summands: tuple[Item, ...] = (*earlier, difference)
        entry = Entry(
            base.entry.dtype,
            base.entry.shape,
            base.entry.nbytes,
            file=None,
            offset=None,
            parts=tuple(item.entry for item in summands),
        )
        items[name] = _Sum(name, summands[0], summands[1:], entry)


def _home(entry: Entry) -> str:
    return str(entry.file) if entry.file is not None else "/".join(map(_home, entry.parts[:2]))
