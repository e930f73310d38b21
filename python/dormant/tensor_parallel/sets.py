"""Merges, splits and reshards the parts of a model, lazily."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch

from dormant.recording.context import lazy_init
from dormant.tensor_parallel.replicas import check_replicas
from dormant.tensor_parallel.rules import (
    Replicated,
    Rule,
    Rules,
    Sharded,
    llama_rules,
    match,
)
from dormant.tensors.names import NamesError, grouped

State = Mapping[str, torch.Tensor]


def merge(
    parts: Sequence[State], *, rules: Rules | None = None, check: bool = True
) -> dict[str, torch.Tensor]:
    """Merges the parts of all ranks to the whole model.

    Args:
        parts: the tensors of each rank, in the order of the ranks.
        rules: how each tensor is divided, by patterns of names. A pattern must match the whole
            name, or everything after one of its dots. None means LLaMA's rules; the shapes tell the
            version.
        check: compares replicated tensors, which are read block by block for this. False skips the
            check and takes the tensors of part 0.

    Returns:
        Names to whole tensors, in the order of part 0; lazy if the parts are lazy. A tensor that is
        replicated, or has only one part, is the same tensor as in part 0.

    Raises:
        KeyError: some parts lack names, or no rule matches a name; the message lists all of them.
        ValueError: there are no parts; parts do not match each other (all tensors are listed); or a
            replicated tensor differs between them (the message gives the part and first element).

    Example:
        >>> import torch
        >>> parts = [{"output.weight": torch.zeros(3, 2)}, {"output.weight": torch.ones(2, 2)}]
        >>> merge(parts)["output.weight"].shape
        torch.Size([5, 2])
    """
    return _reshard("merge", parts, 1, rules, check)[0]


def split(state: State, count: int, *, rules: Rules | None = None) -> list[dict[str, torch.Tensor]]:
    """Divides a whole model among ranks.

    If a size is a multiple of `count`, the parts are those of fairscale and Megatron. Otherwise,
    which these libraries refuse, they are those of `torch.tensor_split`: the first parts have one
    more index.

    Args:
        state: the whole model, by names.
        count: the number of parts.
        rules: as for `merge`; None means the rules of LLaMA 1 and 2, because the shapes of a whole
            model do not tell the version. For LLaMA 3, pass `LLAMA3`.

    Returns:
        The tensors of each rank; lazy if `state` is lazy. Divided tensors get their own memory;
        tensors that are not divided are the same tensor as in `state`, in all parts.

    Raises:
        KeyError: no rule matches a name; the message lists all such names.
        ValueError: `count` is less than one, or tensors cannot be divided by their rule (all of
            them are listed).

    Example:
        >>> import torch
        >>> [p["wo.weight"].shape[1] for p in split({"wo.weight": torch.zeros(2, 8)}, 3)]
        [3, 3, 2]
    """
    return _reshard("split", [state], count, rules, check=True)


def reshard(
    parts: Sequence[State], count: int, *, rules: Rules | None = None, check: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Divides a set of parts for another number of ranks, as `split(merge(parts), count)`.

    No whole tensor is created, even from real parts.

    Args:
        parts: the tensors of each old rank, in the order of the ranks.
        count: the number of new parts.
        rules: as for `merge`.
        check: as for `merge`.

    Returns:
        The tensors of each new rank; lazy if the parts are lazy. A rank takes its own part and
        drops the others.

    Raises:
        KeyError: some parts lack names, or no rule matches a name; the message lists all of them.
        ValueError: as for `merge` and `split`.

    Example:
        >>> import torch
        >>> parts = [{"output.weight": torch.full((2, 1), rank)} for rank in range(3)]
        >>> reshard(parts, 2)[1]["output.weight"].flatten()
        tensor([1, 2, 2])
    """
    return _reshard("reshard", parts, count, rules, check)


def apply_diffs(base: State, diffs: Sequence[State]) -> dict[str, torch.Tensor]:
    """Adds differences, such as LLaMA2-Accessory's model-diff files, to a model, one by one.

    Each sum is computed and rounded in the dtype of `base`, to which the difference is cast.

    Args:
        base: names to tensors.
        diffs: differences to add, in order. A name that is not in `base` is taken unchanged, and
            later differences are added to it.

    Returns:
        Names to sums, first those of `base`; lazy if a summand is lazy. `base` is not changed.

    Raises:
        ValueError: shapes differ, or a value is not a tensor; the message lists all names.

    Example:
        >>> import torch
        >>> apply_diffs({"a": torch.ones(2)}, [{"a": torch.ones(2)}, {"b": torch.zeros(1)}])
        {'a': tensor([2., 2.]), 'b': tensor([0.])}
    """
    result = dict(base)
    known = dict(result)
    diffs = [dict(diff) for diff in diffs]
    problems = []
    for number, diff in enumerate(diffs):
        for name, tensor in diff.items():
            expected = known.setdefault(name, tensor)
            problem = _no_tensor(expected) or _no_tensor(tensor)
            if problem is None and tensor.shape != expected.shape:
                problem = f"shape {_sizes(tensor)}, the model has {_sizes(expected)}"
            if problem is not None:
                problems.append(f"{name!r} in difference {number}: {problem}")
    if problems:
        raise ValueError(
            f"apply_diffs: {len(problems)} tensors cannot be added: {'; '.join(problems)}. Merge "
            "or reshard differences like the model before they are added."
        )
    with torch.no_grad():
        for diff in diffs:
            for name, tensor in diff.items():
                result[name] = _sum(result[name], tensor) if name in result else tensor
    return result


def _sum(tensor: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    # Outside the context, a sum of lazy tensors would materialize them.
    with lazy_init():
        return tensor + difference.to(tensor.dtype)


def _reshard(
    operation: str, parts: Sequence[State], count: int, rules: Rules | None, check: bool
) -> list[dict[str, torch.Tensor]]:
    if count < 1:
        raise ValueError(f"{operation}: count must be at least 1, got {count}.")
    if not parts:
        raise ValueError(f"{operation}: got no parts; pass one mapping for each rank.")
    # A checkpoint creates a tensor for each access; all later code has to use the same tensors.
    parts = [dict(part) for part in parts]
    _check_names(operation, parts)
    _check_values(operation, parts)
    chosen = _match_all(operation, llama_rules(parts) if rules is None else rules, parts[0])
    tensors = {name: [part[name] for part in parts] for name in parts[0]}
    _check_shapes(operation, tensors, chosen, count)
    if check:
        for name, rule in chosen.items():
            if isinstance(rule, Replicated):
                check_replicas(operation, name, tensors[name])
    result: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    with torch.no_grad():
        for name, rule in chosen.items():
            for part, tensor in zip(
                result, _divide(operation, name, tensors[name], count, rule), strict=True
            ):
                part[name] = tensor
    return result


def _divide(
    operation: str, name: str, tensors: list[torch.Tensor], count: int, rule: Rule
) -> Sequence[torch.Tensor]:
    if isinstance(rule, Replicated):
        return [tensors[0]] * count
    if isinstance(rule, Sharded):
        size = sum(tensor.size(rule.dim) for tensor in tensors)
        cuts = _cuts(size, count, rule.unit)
        return [_run(tensors, rule.dim, begin, end) for begin, end in itertools.pairwise(cuts)]
    divided = rule(tensors, count)
    if len(divided) != count or any(_no_tensor(tensor) for tensor in divided):
        raise ValueError(
            f"{operation}: the rule for {name!r} returned "
            f"{[type(tensor).__name__ for tensor in divided]}, expected {count} tensors. "
            "A function as a rule takes the parts and the number of parts to return."
        )
    return divided


def _cuts(size: int, count: int, unit: int) -> list[int]:
    """The beginnings of the parts, and the end of the last."""
    units = size // unit
    share, more = divmod(units, count)
    return [(index * share + min(index, more)) * unit for index in range(count + 1)]


def _run(tensors: list[torch.Tensor], dim: int, begin: int, end: int) -> torch.Tensor:
    """Indices [begin, end) of the concatenated parts; a copy, unless it is exactly one part."""
    pieces = []
    offset = 0
    for tensor in tensors:
        size = tensor.size(dim)
        first, last = max(begin - offset, 0), min(end - offset, size)
        if first < last:
            whole = last - first == size
            pieces.append(tensor if whole else tensor.narrow(dim, first, last - first))
        offset += size
    if len(pieces) > 1:
        return torch.cat(pieces, dim)
    if pieces and any(pieces[0] is tensor for tensor in tensors):
        return pieces[0]
    piece = pieces[0] if pieces else tensors[0].narrow(dim, 0, 0)
    # A view would keep the whole tensor and materialize it.
    return piece.clone(memory_format=torch.contiguous_format)


def _check_names(operation: str, parts: Sequence[State]) -> None:
    names = dict.fromkeys(name for part in parts for name in part)
    lacking = [
        f"{name!r} in {_parts(absent)}"
        for name in names
        if (absent := [index for index, part in enumerate(parts) if name not in part])
    ]
    if lacking:
        raise NamesError(
            f"{operation}: {len(lacking)} of {len(names)} names are missing: {'; '.join(lacking)}. "
            "All parts must have the same names. Check that they belong to one model."
        )


def _check_values(operation: str, parts: Sequence[State]) -> None:
    problems = [
        f"{name!r} in part {index}: {problem}"
        for index, part in enumerate(parts)
        for name, tensor in part.items()
        if (problem := _no_tensor(tensor))
    ]
    if problems:
        raise ValueError(
            f"{operation}: these values are not tensors: {'; '.join(problems)}. Leave them out, or "
            "pass the mapping that holds the tensors."
        )


def _match_all(operation: str, rules: Rules, part: State) -> dict[str, Rule]:
    found = {name: match(rules, name) for name in part}
    unknown = [name for name, rule in found.items() if rule is None]
    if unknown:
        raise NamesError(
            f"{operation}: no rule matches {len(unknown)} of {len(found)} names: "
            f"{', '.join(map(repr, grouped(unknown)))}. Add patterns for them, or pass "
            'rules={**LLAMA, "*": REPLICATED} if every rank holds them whole.'
        )
    return {name: rule for name, rule in found.items() if rule is not None}


def _check_shapes(
    operation: str, tensors: Mapping[str, list[torch.Tensor]], rules: Mapping[str, Rule], count: int
) -> None:
    problems = [
        f"{name!r}: {problem}"
        for name, parts in tensors.items()
        if (problem := _misfit(parts, rules[name]))
    ]
    if problems:
        raise ValueError(
            f"{operation}: {len(problems)} of {len(tensors)} tensors do not match their rules: "
            f"{'; '.join(problems)}. Check that these are the parts of one model, in order, and "
            "that the rules are those of the model."
        )


def _misfit(parts: list[torch.Tensor], rule: Rule) -> str | None:
    """Why parts cannot belong to one tensor that is divided by `rule`; None if they can."""
    first = parts[0]
    for index, part in enumerate(parts):
        if part.dtype != first.dtype:
            return f"part {index} has dtype {part.dtype}, part 0 has {first.dtype}"
        if part.device != first.device:
            return f"part {index} is on {part.device}, part 0 on {first.device}"
    if isinstance(rule, Replicated):
        for index, part in enumerate(parts):
            if part.shape != first.shape:
                return (
                    f"part {index} has shape {_sizes(part)}, part 0 has {_sizes(first)}, expected "
                    "the same in all parts, because it is replicated"
                )
    if not isinstance(rule, Sharded):
        return None
    if not 0 <= rule.dim < first.dim():
        return f"shape {_sizes(first)} has no dimension {rule.dim} to divide"
    for index, part in enumerate(parts):
        if part.dim() != first.dim() or _others(part, rule.dim) != _others(first, rule.dim):
            return (
                f"part {index} has shape {_sizes(part)}, part 0 has {_sizes(first)}, expected "
                f"them to differ in dimension {rule.dim} only"
            )
    size = sum(part.size(rule.dim) for part in parts)
    if rule.unit < 1 or size % rule.unit:
        return f"dimension {rule.dim} has {size} indices, expected a multiple of {rule.unit}"
    return None


def _others(tensor: torch.Tensor, dim: int) -> tuple[int, ...]:
    return (*tensor.shape[:dim], *tensor.shape[dim + 1 :])


def _no_tensor(value: object) -> str | None:
    return None if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _sizes(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def _parts(indices: list[int]) -> str:
    return f"part{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
