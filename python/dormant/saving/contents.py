"""The contents of a save: each tensor once, under one name, and what cannot be saved."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from dormant._extension import _C
from dormant.saving.safetensors_header import METADATA_KEY, PYTORCH
from dormant.saving.safetensors_header import obstacle as safetensors_obstacle
from dormant.tensors.identity import identity, is_wrapper, owns_storage
from dormant.tensors.inventory import element_bytes


@dataclass
class SavedTensor:
    """A tensor to write, under the first of its names.

    Attributes:
        names: all its names.
        tensor: the tensor.
        block: equal for tensors that must go to the same file; None if it does not matter.
        counted: the bytes by which it fills a file; the first tensor of a block counts for all.
    """

    names: list[str]
    tensor: torch.Tensor
    block: object = None
    counted: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.counted < 0:
            self.counted = self.nbytes

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return element_bytes(self.tensor)


@dataclass
class Contents:
    """The contents of a folder or a file of safetensors.

    Attributes:
        tensors: the tensors, in the order in which files are filled.
        stem: the beginning of the names of files.
        metadata: the metadata of each file.
        index_metadata: the metadata of an index, besides the size.
        files: small files beside the weights, by name.
    """

    tensors: list[SavedTensor]
    stem: str = "model"
    metadata: Mapping[str, str] = field(default_factory=lambda: dict(PYTORCH))
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def state_of(model_or_state: object) -> Mapping[str, object]:
    """The state dict of a module, or the mapping itself, whose names must be strings.

    Raises:
        TypeError: it is neither, or a name is not a string.
    """
    if isinstance(model_or_state, torch.nn.Module):
        state: Mapping[str, object] = model_or_state.state_dict()
    elif isinstance(model_or_state, Mapping):
        state = model_or_state
    else:
        raise TypeError(
            f"save: expected a module or a dict of tensors, got {type(model_or_state).__name__}."
        )
    for name in state:
        if not isinstance(name, str):
            raise TypeError(
                f"save: names of tensors must be strings, got {name!r}. Rename it before saving."
            )
    return state


def checked_tensors(state: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """`state`, if safetensors can store all of it.

    Raises:
        ValueError: safetensors cannot store some entries; all of them are listed.
        NotImplementedError: a tensor subclass is made of other tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    refused = []
    for name, value in state.items():
        if name == METADATA_KEY:
            cause: str | None = "the format reserves this name"
        elif isinstance(value, torch.Tensor):
            cause = obstacle(value, repr(name), safetensors_obstacle)
            tensors[name] = value
        else:
            cause = f"a {type(value).__name__}, expected a tensor"
        if cause:
            refused.append(f"{name!r}: {cause}")
    if refused:
        raise ValueError(
            f"save: safetensors cannot hold {len(refused)} of {len(state)} entries: "
            + "; ".join(refused)
            + ". Leave them out of the state dict, convert them, or save to a file that ends in "
            "'.pt'."
        )
    return tensors


def obstacle(
    tensor: torch.Tensor, name: str, of_format: Callable[[torch.Tensor], str | None]
) -> str | None:
    """Why a tensor cannot be saved; None if it can.

    Args:
        tensor: any tensor.
        name: its name, for messages.
        of_format: returns the reason of the format.

    Raises:
        NotImplementedError: a tensor subclass is made of other tensors.
    """
    if torch.nn.parameter.is_lazy(tensor):
        return "its shape is not known yet; run the module once"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return (
            f"its layout is {tensor.layout}{' (nested)' if tensor.is_nested else ''}, expected a "
            "strided tensor"
        )
    if is_wrapper(tensor):
        if (cause := of_format(tensor)) is not None:
            return cause
        raise NotImplementedError(
            f"save: {name} is a {type(tensor).__name__}, made of other tensors, which is not "
            "supported. Save this rank's part (tensor.to_local()), or the whole "
            "(tensor.full_tensor())."
        )
    if (cause := of_format(tensor)) is not None:
        return cause
    if (
        tensor.device.type == "meta"
        or not owns_storage(tensor)
        or tensor.untyped_storage().device.type == "meta"
    ):
        return f"it is on device {str(tensor.device)!r} and has no values"
    return None


def tied_patterns(module: torch.nn.Module) -> list[str]:
    """Patterns of names that are not saved if their tensor has another name.

    transformers declares them per module and matches them with `re.search` below the module's name
    (`remove_tied_weights_from_state_dict` in transformers/modeling_utils.py).
    """
    return [
        f"{name}.{pattern}" if name else pattern
        for name, module in module.named_modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or ()
    ]


def without_ties(state: Mapping[str, torch.Tensor], tied: list[str]) -> list[SavedTensor]:
    """Each tensor once, in the order of `state`, under the name that is kept."""
    position = {name: place for place, name in enumerate(state)}
    kept = []
    for names in groups_of_ties(state):
        name = kept_name(names, tied)
        kept.append(SavedTensor([name, *(n for n in names if n != name)], state[name]))
    return sorted(kept, key=lambda saved: position[saved.names[0]])


def groups_of_ties(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The names of each distinct tensor."""
    groups: dict[object, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(identity(tensor), []).append(name)
    return list(groups.values())


def kept_name(names: list[str], tied: list[str]) -> str:
    """The name that transformers keeps among the names of one tensor."""
    duplicates = duplicate_names(names, tied)
    if len(duplicates) == len(names):
        return duplicates[-1]
    return next(name for name in names if name not in duplicates)


def duplicate_names(names: list[str], tied: list[str]) -> list[str]:
    """The names that a model declares to be second names of a tensor, sorted."""
    if len(names) == 1:
        return []
    return [name for name in sorted(names) if any(re.search(p, name) for p in tied)]


def by_storage(state: Mapping[str, torch.Tensor]) -> dict[int, list[str]]:
    """The names of the tensors of each storage."""
    storages: dict[int, list[str]] = {}
    for name, tensor in state.items():
        storages.setdefault(_C.storage_id(tensor), []).append(name)
    return storages
