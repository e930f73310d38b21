"""`LoadPlan`: what a load will do, known before anything is read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from dormant._extension import _C
from dormant.loading.packed_experts import joined
from dormant.loading.record import Taken, deferred, settle, take
from dormant.loading.stand_ins import StandIns
from dormant.loading.state import State
from dormant.materialization.snapshot import HeldModule
from dormant.quantization.layers import tensors_of
from dormant.tensors.identity import owns_storage
from dormant.tensors.inventory import Inventory, inventory_of
from dormant.tensors.names import Mismatch, NamesError, grouped, listed, renamed_prefix
from dormant.tensors.reachable import reachable_tensors
from dormant.tensors.shards import part_of
from dormant.text.printable import printable
from dormant.text.table import format_bytes, format_count, format_html_table, format_table

PlannedOrigin = Literal["checkpoint", "initialized", "real"]

_HEADER = ("from", "dtype", "tensors", "bytes", "largest")
# What the core calls a state dict in memory (csrc/record/held_memory.cpp).
_MEMORY = "memory"
_SHOWN = 10  # number of groups of names in a printed plan


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of a `LoadPlan`.

    Attributes:
        names: all of its names: more than one for tied tensors and aliases.
        shape: its sizes.
        dtype: its dtype as text, "float32".
        nbytes: bytes of its elements.
        origin: "checkpoint", "initialized" (its own recorded initialization), or "real"
            (it keeps its values).
        files: paths of the files that it is read from.
        sources: names of the checkpoint's tensors that it is computed from: the same name, or
            the names that `rename` or the rules of transformers convert.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    origin: PlannedOrigin
    files: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadPlan:
    """What `load` would do; `load(..., dry_run=True)` returns it and changes nothing.

    Attributes:
        tensors: every distinct tensor of the model; tied ones are listed once.
        missing_keys: names that the model has and the checkpoint does not have.
        unexpected_keys: names that the checkpoint has and the model does not have.
        mismatched_keys: names that both have with different shapes, with the shape in the
            checkpoint and the shape in the model.
        refusal: the message of the error that `load` would raise for these names; "" if it would
            not raise one.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init():
        ...     layer = torch.nn.Linear(3, 2)
        >>> plan = dormant.load(layer, {"weight": torch.ones(2, 3)}, dry_run=True)
        >>> plan.missing_keys, plan.count("checkpoint"), dormant.is_lazy(layer)
        (('bias',), 1, True)
    """

    tensors: list[PlannedTensor]
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    mismatched_keys: tuple[Mismatch, ...] = ()
    refusal: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that would be read, sorted."""
        return tuple(sorted({file for tensor in self.tensors for file in tensor.files}))

    def count(self, origin: PlannedOrigin) -> int:
        """Number of tensors of one origin."""
        return sum(tensor.origin == origin for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The whole plan in plain dicts, lists, numbers and strings, as for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A short table: one line for each origin and dtype, then the names that do not match."""
        return format_table(_HEADER, *self._table())

    def __repr__(self) -> str:
        """One line."""
        return (
            f"LoadPlan({self.count('checkpoint')} of {format_count(len(self.tensors), 'tensor')} "
            f"from the checkpoint, {len(self.missing_keys)} missing, "
            f"{len(self.unexpected_keys)} unexpected, {len(self.mismatched_keys)} mismatched"
            f"{', refused' if self.refusal else ''})"
        )

    def _repr_html_(self) -> str:
        """The same as `str`, as notebooks show it."""
        return format_html_table(_HEADER, *self._table())

    def _table(self) -> tuple[list[Sequence[str]], list[str]]:
        groups: dict[tuple[str, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault((tensor.origin, tensor.dtype), []).append(tensor)
        rows: list[Sequence[str]] = [
            (
                origin,
                dtype,
                str(len(group)),
                format_bytes(sum(tensor.nbytes for tensor in group)),
                max(group, key=lambda tensor: tensor.nbytes).names[0],
            )
            for (origin, dtype), group in groups.items()
        ]
        totals = [
            f"{format_count(len(self.tensors), 'tensor')}, {format_bytes(self.nbytes)}, from "
            f"{format_count(len(self.files), 'file')}"
        ]
        for title, lines in _lists(self.missing_keys, self.unexpected_keys, self.mismatched_keys):
            if lines:
                totals.append(f"{title}:")
                totals += [f"  {printable(line)}" for line in lines[:_SHOWN]]
                if len(lines) > _SHOWN:
                    totals.append(f"  ... {len(lines) - _SHOWN} more")
        converted = [tensor for tensor in self.tensors if set(tensor.sources) - set(tensor.names)]
        if converted:
            read = len(set(itertools.chain.from_iterable(each.sources for each in converted)))
            totals.append(
                f"{format_count(len(converted), 'tensor')} converted from "
                f"{format_count(read, 'tensor')} with other names in the checkpoint"
            )
        if self.refusal:
            totals.append("load would raise an error.")
        return rows, totals


def _lists(
    missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[Mismatch]
) -> list[tuple[str, list[str]]]:
    return [
        ("missing in the checkpoint", grouped(missing)),
        ("not in the model", grouped(unexpected)),
        ("of another shape", _shapes(mismatched)),
    ]


def _shapes(mismatched: Sequence[Mismatch], state: State | None = None) -> list[str]:
    return [
        f"{name}: {theirs} in the checkpoint{state.made_of(name) if state else ''}, {ours} in the "
        "model"
        for name, theirs, ours in mismatched
    ]


@dataclass(frozen=True)
class Policy:
    """What `load` does with names that do not match, as in its arguments.

    Attributes:
        missing: "warn", "init" or "error".
        unexpected: "error" or "ignore".
        mismatched: "error" or "init".
    """

    missing: str
    unexpected: str
    mismatched: str


@dataclass(frozen=True)
class Prepared:
    """A model that has taken a checkpoint, lazily, and can still be restored.

    Attributes:
        plan: what will be done.
        held: the previous state of the model.
        before: its previous tensors.
        loaded: its current tensors.
        origins: where each storage gets its values from.
        read_at_once: names whose values had to be copied already.
        rules: the rules of transformers that were used; None if none were needed.
    """

    plan: LoadPlan
    held: HeldModule
    before: Inventory
    loaded: Inventory
    origins: Mapping[int, PlannedOrigin]
    read_at_once: tuple[str, ...]
    rules: tuple[Any, ...] | None


def prepare(
    model: torch.nn.Module,
    state: State,
    dtype: torch.dtype | None,
    policy: Policy,
    stand_ins: StandIns,
    *,
    defer: bool,
) -> Prepared:
    """Makes the model take the checkpoint on lazy tensors; the caller keeps or restores it.

    Args:
        model: the model.
        state: the tensors of the checkpoint.
        dtype: the dtype that the model's tensors get first; None keeps theirs.
        policy: what is accepted.
        stand_ins: what the model has in place of its tensors on other devices.
        defer: whether real tensors of `state` are also read later.

    Raises:
        ValueError, RuntimeError: as in `take`; the model is then unchanged.
    """
    state = deferred(state, model, stand_ins.own_storages) if defer else state
    state = joined(model, state).under_library_names(model)
    tensors = list(reachable_tensors(model))
    before = inventory_of(tensors)
    stand_ins.count_as_real(before)
    held = HeldModule(model, tensors)
    try:
        settle(state)
        taken = take(model, state, dtype)
        if taken.mismatched:
            # load_state_dict has taken the others, but says only that there was an error.
            held.restore()
            held = HeldModule(model)
            settle(state)
            mismatched = taken.mismatched
            names = {name for name, _, _ in mismatched}
            try:
                taken = take(model, state.without(names), dtype)
            except Exception:  # a hook may need what was left out, and that is refused anyway
                if policy.mismatched == "init":
                    raise
            absent = tuple(name for name in taken.missing if name not in names)
            taken = replace(taken, missing=absent, mismatched=mismatched)
        loaded = inventory_of(reachable_tensors(model))
        origins = _origins(model, taken, before, loaded)
        plan = LoadPlan(
            _planned(loaded, origins, taken, state),
            taken.missing,
            taken.unexpected,
            taken.mismatched,
            _refusal(model, state, taken, policy),
        )
    except BaseException:
        held.restore()
        raise
    return Prepared(plan, held, before, loaded, origins, taken.read_at_once, state.rules)


def _origins(
    model: torch.nn.Module, taken: Taken, before: Inventory, loaded: Inventory
) -> dict[int, PlannedOrigin]:
    """Where each storage of the model gets its values from."""
    tensors = tensors_of(model)
    with torch._C.DisableTorchFunctionSubclass():
        loaded_tensors = [tensors[name] for name in taken.loaded if name in tensors]
        parts = [part_of(tensor) for tensor in loaded_tensors]
        read = {
            _C.storage_id(part if part is not None else tensor)
            for tensor, part in zip(loaded_tensors, parts, strict=True)
            if part is not None or owns_storage(tensor)
        }
    had_memory = real_storages(before)

    def origin(storage: int) -> PlannedOrigin:
        if storage in read:
            return "checkpoint"
        tensor = loaded.lazy_storages.get(storage)
        if tensor is None or storage in had_memory:
            return "real"
        sources = _C.sources(tensor)
        # A real tensor that is converted is read from its previous memory.
        return "initialized" if not sources else "checkpoint" if _files(tensor) else "real"

    return {storage: origin(storage) for storage in loaded.storage_nbytes}


def _files(tensor: torch.Tensor) -> tuple[str, ...]:
    return tuple(sorted(_C.sources(tensor) - {_MEMORY}))


def _planned(
    loaded: Inventory, origins: Mapping[int, PlannedOrigin], taken: Taken, state: State
) -> list[PlannedTensor]:
    found = set(taken.loaded)

    def sources(names: Sequence[str]) -> tuple[str, ...]:
        each = (state.origins_of(name) for name in names if name in found)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(each)))

    return [
        PlannedTensor(
            names=tuple(entry.names),
            shape=entry.shape,
            dtype=entry.dtype,
            nbytes=entry.nbytes,
            origin=origins[entry.storage],
            files=_files(loaded.lazy_storages[entry.storage])
            if origins[entry.storage] == "checkpoint" and entry.storage in loaded.lazy_storages
            else (),
            sources=sources(entry.names),
        )
        for entry in loaded.entries
    ]


def real_storages(inventory: Inventory) -> set[int]:
    """The storages that have memory."""
    return inventory.storage_nbytes.keys() - inventory.lazy_storages.keys()


def _refusal(model: torch.nn.Module, state: State, taken: Taken, policy: Policy) -> str:
    """Why `load` refuses the names, with all reasons at once; "" if it does not refuse them."""
    listing = ""
    accepted = []
    if policy.missing == "error":
        listing += listed("missing in the checkpoint", taken.missing)
        accepted.append("missing='init'")
    if policy.unexpected == "error":
        listing += listed("not in the model", taken.unexpected)
        accepted.append("unexpected='ignore'")
    if policy.mismatched == "error":
        listing += listed("of another shape", _shapes(taken.mismatched, state))
        accepted.append("mismatched='init'")
    hint = renamed_prefix(taken.unexpected, taken.missing)
    hint = f"{hint} " if hint else ""
    unexpected = set(taken.unexpected)
    if state.offered and tensors_of(model) and all(name in unexpected for name in state):
        # With unexpected="ignore", the result would be a model with random values.
        listing = listed("not in the model", taken.unexpected)
        return (
            "load: no name of the checkpoint is a name of the model; nothing was changed. The "
            f"checkpoint has {format_count(state.offered, 'name')}, the model has "
            f"{len(taken.missing)}, such as "
            f"{', '.join(map(printable, taken.missing[:3]))}.{listing}\n{hint}{_inner(state)}"
            "Rename with rename=, or pass the checkpoint of this model."
        )
    if not listing:
        return ""
    return (
        f"load: the checkpoint does not fit the model; nothing was changed.{listing}\n{hint}"
        f"Rename with rename=, or accept it with {' or '.join(accepted)}."
    )


def _inner(state: State) -> str:
    """A hint if the mapping contains a state dict but is not one."""
    for name, value in state.items():
        if isinstance(value, dict) and any(isinstance(t, torch.Tensor) for t in value.values()):
            return f"Pass checkpoint[{name!r}], which holds tensors. "
    return ""


def refused(plan: LoadPlan) -> NamesError:
    """The error of a plan that is refused."""
    return NamesError(
        plan.refusal,
        missing_keys=plan.missing_keys,
        unexpected_keys=plan.unexpected_keys,
        mismatched_keys=plan.mismatched_keys,
    )
