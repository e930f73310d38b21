"""Converts names and layouts of transformers' checkpoints, as its `from_pretrained` does.

The files of `save_pretrained` often have the names and the layout of the first release of a model
(separate experts, "encoder.layer" instead of "layers"). The rules are those of the installed
version (transformers/conversion_mapping.py). The code follows
`convert_and_load_state_dict_in_model` in transformers/core_model_loading.py, with lazy tensors
instead of data that is read.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dormant.quantization.layers import quantized_weights, tensors_of
from dormant.recording.context import lazy_init
from dormant.tensors.exhausted_memory import is_exhausted_memory
from dormant.tensors.pretrained import is_pretrained
from dormant.text.printable import printable
from dormant.text.table import format_count

# How many names of a checkpoint a message lists for one tensor of the model.
_NAMED = 4


@dataclass(frozen=True)
class Step:
    """Tensors of a checkpoint that one rule makes into tensors of the model.

    Attributes:
        target: the name in the model; the first if the rule makes several tensors.
        sources: names in the checkpoint, each with the pattern of the rule that it matches.
        rule: the rule of transformers; None if only the name changes.
    """

    target: str
    sources: tuple[tuple[str, str], ...]
    rule: Any = None

    @property
    def origins(self) -> tuple[str, ...]:
        """The names in the checkpoint."""
        return tuple(name for name, _ in self.sources)

    def apply(self, model: Any, values: Mapping[str, Any], operation: str) -> dict[str, Any]:
        """Applies the rule to `values`, lazily.

        Args:
            model: the model, whose configuration and shapes the rules use.
            values: the checkpoint's tensors.
            operation: for messages.

        Raises:
            ValueError: the rule cannot be applied to these tensors.
        """
        if self.rule is None:
            return {self.target: values[self.origins[0]]}
        # A rule keeps the tensors that were added last.
        rule = copy.deepcopy(self.rule)
        given = [(name, pattern, values[name]) for name, pattern in self.sources]
        for name, pattern, value in given:
            rule.add_tensor(self.target, name, pattern, value)
        try:
            with lazy_init(), torch.no_grad():
                made = rule.convert(self.target, model=model, config=model.config)
        except Exception as error:
            if is_exhausted_memory(error):
                raise
            raise ValueError(
                f"{operation}: transformers makes {self.target!r} of {type(model).__name__} from "
                f"{listing(self.origins)} of the checkpoint by {_operations(rule)}, which failed: "
                f"{printable(str(error))}. Their shapes are "
                f"{_shapes([value for _, _, value in given])}. Get the whole checkpoint of this "
                "model, or leave these tensors out by renaming them to None."
            ) from error
        return {
            name: value[0] if isinstance(value, list) else value for name, value in made.items()
        }


class Naming(Protocol):
    """How transformers converts the names and layouts of another format to those of a model."""

    def transforms(self, model: Any) -> list[Any] | None:
        """Its rules, if they have the form of those for its own checkpoints."""

    def steps(
        self, model: Any, own: Mapping[str, Any], shapes: Mapping[str, Sequence[int] | None]
    ) -> list[Step]:
        """Otherwise, how the model's tensors, `own`, are made from the checkpoint's."""


@dataclass(frozen=True)
class Conversion:
    """How the tensors of a checkpoint become those of a model of transformers.

    Attributes:
        steps: in the order of the library.
        rules: the rules that matched a name, which `save_pretrained` needs when it saves the model;
            None if they are not those of the model's own files.
    """

    steps: tuple[Step, ...]
    rules: tuple[Any, ...] | None

    def apply(
        self,
        model: Any,
        values: Mapping[str, Any],
        operation: str,
        places: Mapping[str, int] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Step]]:
        """The model's tensors, still lazy, and the step that made each.

        Args:
            model: the model.
            values: the checkpoint's tensors.
            operation: for messages.
            places: the checkpoint, of several, that a name is from; later ones replace earlier.

        Raises:
            ValueError: a rule cannot be applied, or two steps make one tensor.
        """
        made: dict[str, Any] = {}
        makers: dict[str, Step] = {}
        for step in self.steps:
            for name, value in step.apply(model, values, operation).items():
                if name in made and _is_later(makers[name], step, places or {}):
                    continue
                if name in made and not _is_later(step, makers[name], places or {}):
                    one, other = makers[name].origins, step.origins
                    raise ValueError(
                        f"{operation}: {listing(one)} and {listing(other)} of the checkpoint both "
                        f"become {name!r} of {type(model).__name__} by the rules of transformers. "
                        f"Leave one of them out: rename={{{other[0]!r}: None}}."
                    )
                made[name] = value
                makers[name] = step
        return made, makers


def _is_later(step: Step, other: Step, places: Mapping[str, int]) -> bool:
    """Whether all sources of `step` are from later checkpoints than all sources of `other`."""
    first = min(places.get(name, 0) for name in step.origins)
    return first > max(places.get(name, 0) for name in other.origins)


def find_conversion(
    model: torch.nn.Module,
    shapes: Mapping[str, Sequence[int] | None],
    operation: str,
    naming: Naming | None = None,
) -> Conversion | None:
    """The conversion of a checkpoint to a model; None if it already has the model's own tensors.

    Args:
        model: any module; there is no conversion for modules that are not of transformers.
        shapes: shapes of the checkpoint's tensors by name; None for a value that is not a tensor.
        operation: for messages.
        naming: the naming of a checkpoint in a format with its own names.

    Raises:
        ValueError: the checkpoint lacks some of the tensors that a rule needs, or has quantized
            tensors that a rule would have to combine.
        NotImplementedError: there are no rules for such names.
        ImportError: the rules are in a library that is not installed.
    """
    library: Any = sys.modules.get("transformers.core_model_loading")
    if library is None or not is_pretrained(model):
        return None
    own = tensors_of(model)
    if all(_takes(own.get(name), shape) for name, shape in shapes.items() if shape is not None):
        return None
    parts = {
        name for weight in quantized_weights(model) for name in weight.prequantized_names()
    } - own.keys()
    known = {**own, **dict.fromkeys(parts, True)}
    transforms = None
    if naming is not None:
        transforms = naming.transforms(model)
        if transforms is None:
            return Conversion(tuple(naming.steps(model, own, shapes)), None)
    rules = Rules(model, transforms)
    steps: list[Step] = []
    pending: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for name in _sorted(shapes, library, operation):
        new, pattern = rules.apply_to(name, known)
        if new not in known or shapes[name] is None:
            steps.append(Step(name, ((name, ""),)))  # unexpected under its own name
        elif pattern is None:
            steps.append(Step(new, ((name, ""),)))
        elif new in parts:
            raise ValueError(
                f"{operation}: {name!r} of the checkpoint is part of a quantized weight that "
                f"transformers would convert to {new!r} of {type(model).__name__}, which is not "
                "possible with packed bytes. Load the checkpoint that was not quantized, and "
                "quantize the model with dormant.quantize."
            )
        else:
            pending.setdefault(new, (rules.of_pattern[pattern], []))[1].append((name, pattern))
    for target, (rule, sources) in pending.items():
        _check_numbers(target, sources, model, operation)
        steps.append(Step(target, tuple(sources), rule))
    if all(step.rule is None and step.origins == (step.target,) for step in steps):
        return None
    return Conversion(tuple(steps), rules.used() if naming is None else None)


class Rules:
    """The rules of the installed transformers for the checkpoints of a model, or those given.

    Attributes:
        of_pattern: the rules that change more than names, by each pattern that they match.
    """

    def __init__(self, model: torch.nn.Module, transforms: list[Any] | None = None) -> None:
        library: Any = sys.modules["transformers.core_model_loading"]
        mapping: Any = sys.modules["transformers.conversion_mapping"]
        self._all: list[Any] = (
            mapping.get_model_conversion_mapping(_AsBuilt(model) if _is_sharded(model) else model)
            if transforms is None
            else transforms
        )
        self._renamings = [rule for rule in self._all if isinstance(rule, library.WeightRenaming)]
        self._converters = [rule for rule in self._all if isinstance(rule, library.WeightConverter)]
        self._prefix: Any = model.base_model_prefix
        self._rename = library.rename_source_key
        self.of_pattern: dict[str, Any] = {
            pattern: rule for rule in self._converters for pattern in rule.source_patterns
        }

    def apply_to(self, name: str, known: Mapping[str, Any]) -> tuple[str, str | None]:
        """The name in the model, and the pattern of the rule if it changes more than the name."""
        new, pattern = self._rename(name, self._renamings, self._converters, self._prefix, known)
        if new not in known and name in known:
            new, pattern = self._rename(name, [], [], self._prefix, known)
        return new, pattern

    def used(self) -> tuple[Any, ...]:
        """The rules that matched a name."""
        return tuple(rule for rule in self._all if rule.was_used())


def listing(names: Sequence[str]) -> str:
    """A few names for a message."""
    shown = ", ".join(repr(name) for name in names[: _NAMED - 1])
    if len(names) < _NAMED:
        return shown
    if len(names) == _NAMED:
        return f"{shown}, {names[-1]!r}"
    return f"{shown}, ... {names[-1]!r} ({len(names)} tensors)"


class _AsBuilt:
    """A model whose modules have their original classes again.

    `fully_shard` gives them new classes, which the library takes for user code, whose names it does
    not convert.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The modules; sharded modules appear as objects of their former class."""
        for name, module in self._model.named_modules():
            if not _is_sharded_class(type(module)):
                yield name, module
                continue
            kind = next(kind for kind in type(module).__mro__ if not _is_sharded_class(kind))
            twin: Any = object.__new__(kind)
            vars(twin).update(vars(module))
            yield name, twin


def _is_sharded(module: torch.nn.Module) -> bool:
    return any(map(_is_sharded_class, {type(each) for each in module.modules()}))


def _is_sharded_class(kind: type) -> bool:
    library = sys.modules.get("torch.distributed.fsdp")  # imported by code that shards
    return library is not None and issubclass(kind, library.FSDPModule)


def _sorted(names: Iterable[str], library: Any, operation: str) -> list[str]:
    try:
        return sorted(names, key=library.dot_natural_key)
    except ValueError as error:  # what looks like a number and is none, or has too many digits
        raise ValueError(
            f"{operation}: transformers cannot sort the names of the checkpoint: "
            f"{printable(str(error))}. Rename or leave out the names that are not of this model."
        ) from error


def _takes(tensor: torch.Tensor | None, shape: Sequence[int]) -> bool:
    """Whether a tensor of the checkpoint can be loaded into a tensor of the model unchanged."""
    if tensor is None or torch.nn.parameter.is_lazy(tensor):
        return tensor is not None
    return tuple(tensor.shape) == tuple(shape)


def _check_numbers(
    target: str, sources: Iterable[tuple[str, str]], model: torch.nn.Module, operation: str
) -> None:
    """Raises ValueError if the tensors of a list (experts) are not numbered without a gap.

    The library combines those that exist, whatever their numbers.
    """
    names: dict[str, list[list[str]]] = {}
    for name, pattern in sources:
        names.setdefault(pattern, []).append(name.split("."))
    lists: list[tuple[list[str], int, set[int]]] = []
    for pattern, found in names.items():
        places = [
            place
            for place in range(min(map(len, found)))
            if len({parts[place] for parts in found}) > 1
        ]
        if "*" not in pattern or len(places) != 1:
            continue
        numbers = {parts[places[0]] for parts in found}
        if all(number.isdecimal() for number in numbers):
            lists.append((found[0], places[0], set(map(int, numbers))))
    count = 1 + max((max(numbers) for _, _, numbers in lists), default=-1)
    lacking = sum(count - len(numbers) for _, _, numbers in lists)
    if not lacking:
        return
    names_of_them = (
        ".".join([*parts[:place], str(number), *parts[place + 1 :]])
        for parts, place, numbers in lists
        for number in range(count)
        if number not in numbers
    )
    shown = ", ".join(repr(name) for name in itertools.islice(names_of_them, _NAMED))
    raise ValueError(
        f"{operation}: transformers needs {format_count(lacking, 'more tensor')} for {target!r} of "
        f"{type(model).__name__}: {shown}"
        f"{', ...' if lacking > _NAMED else ''}. They are missing from the checkpoint. "
        "Get the whole checkpoint."
    )


def _operations(rule: Any) -> str:
    return " and ".join(type(operation).__name__ for operation in rule.operations)


def _shapes(values: Iterable[torch.Tensor]) -> str:
    distinct = dict.fromkeys(tuple(value.shape) for value in values)
    return ", ".join(str(list(shape)) for shape in distinct)
