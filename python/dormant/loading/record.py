"""Takes a checkpoint with a model's own `load_state_dict`, on lazy tensors: nothing is read."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dormant._extension import _C
from dormant.loading.state import EXTRA_STATE, State
from dormant.materialization.api import is_lazy
from dormant.quantization.layers import QuantizedWeight, quantized_weights, tensors_of
from dormant.recording.dtensor_copies import own_part
from dormant.tensors.conversion import convert_dtype
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.exhausted_memory import is_exhausted_memory
from dormant.tensors.identity import identity, owns_storage
from dormant.tensors.inventory import element_bytes
from dormant.tensors.names import Mismatch

# If a checkpoint has both of two tied names, they are compared in parts of this size.
_COMPARED_BYTES = 16 << 20


@dataclass(frozen=True)
class Taken:
    """What a model took from a checkpoint, and the names that do not match.

    Attributes:
        missing: names that the checkpoint does not have.
        unexpected: names that the model does not have.
        mismatched: names with another shape; if there are any, nothing else was taken.
        loaded: names that the checkpoint has for the model.
        read_at_once: those of `loaded` whose values had to be copied at once.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...] = ()
    loaded: tuple[str, ...] = ()
    read_at_once: tuple[str, ...] = ()


def take(model: torch.nn.Module, state: State, dtype: torch.dtype | None) -> Taken:
    """Runs the module's own `load_state_dict` on lazy tensors.

    Args:
        model: the model; its tensors are held.
        state: the tensors of the checkpoint.
        dtype: the dtype that the model's tensors get first; None keeps theirs.

    Raises:
        ValueError: names of one tensor have different values, or the module refuses the state.
        RuntimeError: there was no memory for a copy.
    """
    if dtype is not None:
        convert_dtype([("", model)], dtype)
    given = state.like_this(state)
    weights = quantized_weights(model)
    with contextlib.ExitStack() as exposed:
        taken = _expose(weights, given, dtype, exposed)
        tensors = tensors_of(model)
        for name in [name for name in given if is_dtensor(tensors.get(name))]:
            given[name] = _shard(given[name], tensors[name])
        _check_ties(tensors, given)
        at_once = tuple(
            name
            for name, tensor in tensors.items()
            if isinstance(given.get(name), torch.Tensor)
            and (_uninitialized(tensor) or not is_lazy(given[name]))
        )
        try:
            result = model.load_state_dict(given, strict=False)
        except RuntimeError as error:
            mismatched = tuple(
                (name, tuple(given[name].shape), tuple(tensor.shape))
                for name, tensor in tensors.items()
                if isinstance(given.get(name), torch.Tensor)
                and not _uninitialized(tensor)
                and not _fits(given[name], tensor)
            )
            if not mismatched and is_exhausted_memory(error):
                raise RuntimeError(f"load: out of memory while a copy was made: {error}") from error
            if not mismatched:
                raise ValueError(f"load: the module refused the checkpoint: {error}") from error
            absent = tuple(name for name in tensors if name not in given)
            return Taken(absent, (), mismatched)
    missing, unexpected = _names_of(result, tensors, given)
    saved_as = {weight.held_as: weight.name for weight in weights}
    missing = [saved_as.get(name, name) for name in missing]
    found = tuple(name for name in given if name in tensors)
    loaded = {identity(tensors[name]) for name in found}
    absent = tuple(
        name
        for name in missing
        if name not in taken and (name not in tensors or identity(tensors[name]) not in loaded)
    )
    return Taken(absent, tuple(unexpected), (), (*found, *sorted(taken)), at_once)


def _names_of(
    result: object, tensors: Mapping[str, torch.Tensor], given: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[str]]:
    """(missing, unexpected) from `load_state_dict`; the method of some classes returns nothing."""
    missing = getattr(result, "missing_keys", None)
    unexpected = getattr(result, "unexpected_keys", None)
    if missing is None:
        missing = [name for name in tensors if name not in given]
    if unexpected is None:
        unexpected = [
            name for name in given if name not in tensors and not name.endswith(EXTRA_STATE)
        ]
    return missing, unexpected


def _expose(
    weights: Iterable[QuantizedWeight],
    state: dict[str, Any],
    dtype: torch.dtype | None,
    exposed: contextlib.ExitStack,
) -> set[str]:
    """Makes quantized weights take full-precision tensors; passes on those already quantized."""
    taken: set[str] = set()
    for weight in weights:
        if not weight.is_lazy:
            continue
        parts = [name for name in weight.prequantized_names() if name in state]
        if len(parts) > 1:
            prefix = weight.name.removesuffix(weight.attribute)
            weight.accept_prequantized(
                {name.removeprefix(prefix): state.pop(name) for name in parts}
            )
            taken.update(parts)
        else:
            exposed.enter_context(weight.expose(dtype=dtype))
    return taken


def deferred(state: State, model: torch.nn.Module, own_storages: Collection[int]) -> State:
    """`state` with lazy tensors that read the real ones: nothing is copied before the checks.

    Tensors over the model's own memory stay as they are: they become lazy with the model
    (`settle`). Reading them after the model took something there reads what it took, as in eager
    mode. Those over its memory on other devices (`own_storages`) are read at once.
    """
    own = {
        *own_storages,
        *(
            _C.storage_id(tensor)
            for tensor in (*model.parameters(), *model.buffers())
            if owns_storage(tensor)
        ),
    }
    return state.like_this({name: _deferred(value, own) for name, value in state.items()})


def settle(state: State) -> None:
    """Marks the memory of tensors of `state` as held: they share it with the model."""
    for value in state.values():
        if isinstance(value, torch.Tensor) and owns_storage(value) and _C.is_lazy(value):
            _C.settle(value)


def _deferred(value: Any, own: Collection[int]) -> Any:
    if (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and owns_storage(value)
        and value.device.type != "meta"
        and not value.is_quantized
        and not _C.is_lazy(value)
        and not value.is_conj()
        and not value.is_neg()
        and value.is_contiguous()
        and _C.storage_id(value) not in own
    ):
        return _C.read_of(value)
    return value


def _shard(value: Any, like: torch.Tensor) -> Any:
    """This rank's part of a whole tensor of the right shape."""
    if not isinstance(value, torch.Tensor) or is_dtensor(value):
        return value
    assert is_dtensor(like)
    return own_part(value, like) if value.shape == like.shape else value


def _fits(value: torch.Tensor, tensor: torch.Tensor) -> bool:
    # Module._load_from_state_dict takes a scalar from a vector of one, as PyTorch 0.3 saved them.
    return value.shape == tensor.shape or (tensor.dim() == 0 and tuple(value.shape) == (1,))


def _uninitialized(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer))


def _check_ties(tensors: Mapping[str, torch.Tensor], state: State) -> None:
    """Raises ValueError if a checkpoint has different values for names of one tensor."""
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(state.get(name), torch.Tensor):
            continue
        other = first.setdefault(identity(tensor), name)
        if other != name and not _same_values(state[other], state[name]):
            raise ValueError(
                f"load: {other!r}{state.made_of(other)} and {name!r}{state.made_of(name)} are one "
                "tensor in the model and have different values in the checkpoint. Leave one of "
                "them out (rename to None), or untie them in the model."
            )


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same bits; lazy ones are read one part at a time."""
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    if a is b or is_dtensor(a) or is_dtensor(b):
        return True
    if identity(a) == identity(b) or a.numel() == 0:
        return True
    with torch.no_grad():
        a, b = a.detach(), b.detach()
        if a.dim() == 0:
            a, b = a.view(1), b.view(1)
        rows = max(1, _COMPARED_BYTES * a.shape[0] // element_bytes(a))
        for row in range(0, a.shape[0], rows):
            parts = [each[row : row + rows].clone() for each in (a, b)]
            _C.materialize(parts, "exact", None, None, "never")
            one, other = (part.contiguous().view(-1).view(torch.uint8) for part in parts)
            if not torch.equal(one, other):
                return False
    return True
