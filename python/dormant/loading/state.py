"""The tensors of one or more checkpoints, under the names of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from dormant.checkpoint.api import Checkpoint, open_each
from dormant.checkpoint.pretrained import Naming, find_conversion, listing
from dormant.tensor_parallel.sets import apply_diffs
from dormant.tensors.names import renamed

CheckpointLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"

EXTRA_STATE = "_extra_state"  # torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX

# No configuration of a model is longer.
_LONGEST_CONFIG = 1 << 24


class State(dict[str, Any]):
    """A state dict; `_metadata` is where `load_state_dict` looks for module versions.

    Attributes:
        folders: the folders of the local files that it comes from.
        offered: the number of names in the checkpoints, including those that were renamed to None.
        origins: the checkpoint's names that a name is computed from, if they are different.
        places: which of several checkpoints a name comes from.
        is_decoded: whether some of the tensors are encoded in the files.
        rules: the rules of transformers by which the names match the model; None if they match
            without rules.
        naming: the naming of a checkpoint in a format that has its own names.
    """

    rules: tuple[Any, ...] | None = None
    naming: Naming | None = None

    def __init__(
        self,
        values: Mapping[str, Any],
        metadata: dict[str, Any] | None = None,
        folders: Iterable[Path] = (),
        offered: int = 0,
        origins: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(values)
        self.folders = tuple(folders)
        self.offered = offered
        self.origins = dict(origins or {})
        self.places: dict[str, int] = {}
        self.is_decoded = False
        if metadata:  # load_state_dict asks whether there is any
            self._metadata = metadata

    def like_this(self, values: Mapping[str, Any]) -> State:
        """Other values of the same modules."""
        metadata = getattr(self, "_metadata", None)
        state = State(values, metadata, self.folders, self.offered, self.origins)
        state.rules = self.rules
        state.places = self.places
        state.naming = self.naming
        state.is_decoded = self.is_decoded
        return state

    def without(self, names: Collection[str]) -> State:
        """The rest of the values."""
        return self.like_this({name: self[name] for name in self if name not in names})

    def origins_of(self, name: str) -> tuple[str, ...]:
        """The checkpoint's names that `name` is computed from."""
        return self.origins.get(name, (name,))

    def made_of(self, name: str) -> str:
        """The checkpoint's names that `name` is computed from, for a message, if they differ."""
        origins = self.origins_of(name)
        return "" if origins == (name,) else f" (made of {listing(origins)})"

    def under_library_names(self, model: torch.nn.Module) -> State:
        """The state under the names and in the layouts of a model, by transformers' rules, lazily.

        Raises:
            ValueError: as in `find_conversion` and `Conversion.apply`.
        """
        shapes = {
            name: tuple(value.shape) if isinstance(value, torch.Tensor) else None
            for name, value in self.items()
        }
        conversion = find_conversion(model, shapes, "load", self.naming)
        if conversion is None:
            return self
        values, makers = conversion.apply(model, self, "load", self.places)
        state = self.like_this(values)
        state.rules = conversion.rules
        state.origins = {
            name: origins
            for name, step in makers.items()
            if (origins := tuple(each for one in step.origins for each in self.origins_of(one)))
            != (name,)
        }
        return state


def gather(
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    rename: Callable[[str], str | None],
    names: Collection[str],
    keep_packed: Callable[[str], bool],
) -> State:
    """All tensors and other values under the model's names.

    Args:
        checkpoint: as for `load`.
        rename: from a checkpoint's names to the model's; None leaves a tensor out.
        names: the model's names, by which the state dict in a file of torch.save is found.
        keep_packed: whether the model takes the tensor of a name, after `rename`, as bitsandbytes
            packed it.

    Raises:
        TypeError: an item is neither a path nor a mapping.
        ValueError, KeyError, NotImplementedError, OSError: as in `open_checkpoint`; two tensors of
            one item get one name; or the first item contains differences.
    """
    items: Sequence[Any] = checkpoint if isinstance(checkpoint, (list, tuple)) else [checkpoint]

    def fits(theirs: Iterable[str]) -> int:
        return sum(rename(name) in names for name in theirs)

    paths = [place for place, item in enumerate(items) if isinstance(item, (str, os.PathLike))]
    found = open_each([items[place] for place in paths], fits)
    opened = {paths[position]: each for position, each in found.items()}
    values: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    folders: dict[Path, None] = {}
    origins: dict[str, tuple[str, ...]] = {}
    places: dict[str, int] = {}
    offered = 0
    naming: Naming | None = None
    is_decoded = False
    for place, item in enumerate(items):
        if isinstance(item, (str, os.PathLike)):
            if place not in opened:  # otherwise a further part of a tensor-parallel set
                continue
            item = opened[place]
        if not isinstance(item, Mapping):
            raise TypeError(
                "load: checkpoint must be a path, a mapping of names to tensors, or a sequence of "
                f"these; got {type(item).__name__}."
            )
        if isinstance(item, Checkpoint):
            item = item.keeping_packed(lambda name: keep_packed(rename(name) or ""))
            is_decoded = is_decoded or item.is_decoded
            paths_of_it = (path for path in item.files if isinstance(path, Path))
            folders.update(dict.fromkeys(path.parent for path in paths_of_it))
            naming = naming or item.naming
        offered += len(item)
        ours = _renamed(item, rename)
        if getattr(item, "are_differences", False):
            if not values:
                raise ValueError(
                    f"load: {item!r} contains differences, which are added to other weights. Pass "
                    "[base, differences], or their sum as a mapping."
                )
            ours = apply_diffs({name: values[name] for name in ours if name in values}, [ours])
        values.update(ours)
        places.update(dict.fromkeys(ours, place))
        for name in item:
            new = rename(name)
            if new == name:
                origins.pop(name, None)
            elif new is not None:
                origins[new] = (name,)
        metadata.update(getattr(item, "_metadata", None) or {})
    state = State(values, metadata, folders, offered, origins)
    state.places = places
    state.naming = naming
    state.is_decoded = is_decoded
    return state


def _renamed(item: Mapping[str, Any], rename: Callable[[str], str | None]) -> dict[str, Any]:
    values = {name: item[name] for name in item}
    for name, value in getattr(item, "extra", {}).items():
        if isinstance(name, str) and name.endswith(EXTRA_STATE):
            values.setdefault(name, value)
    return renamed(values, rename)


def own_dtype(state: State) -> torch.dtype | None:
    """The dtype of a checkpoint, as transformers finds it for `dtype="auto"`.

    This is the dtype in config.json beside its files, otherwise that of its first floating-point
    tensor; None if neither exists. Tensors with one byte for each element are quantized.
    """
    for folder in state.folders:
        dtype = _dtype_in(folder / "config.json")
        if dtype is not None:
            return dtype
    for value in state.values():
        if isinstance(value, torch.Tensor) and _can_compute(value.dtype):
            return value.dtype
    return None


def _dtype_in(config: Path) -> torch.dtype | None:
    try:
        if config.stat().st_size > _LONGEST_CONFIG:
            return None
        entries = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entries, dict):
        return None
    # Versions of transformers before 5 write "torch_dtype".
    name = entries.get("dtype") or entries.get("torch_dtype")
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    return dtype if isinstance(dtype, torch.dtype) and _can_compute(dtype) else None


def _can_compute(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1
