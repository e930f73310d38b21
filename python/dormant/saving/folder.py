"""A folder of safetensors files: which tensors are in which file, and how files are replaced."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dormant.publication.publication import Replacement
from dormant.saving.contents import Contents, SavedTensor

_SUFFIX = ".safetensors"
# transformers also gives this name to the index of an adapter's files.
_INDEX = "model.safetensors.index.json"
# Shards, and shards of a save that was killed while it gave shards the names of earlier ones.
_SHARD = r"-\d{5}-of-\d{5}(\.[0-9a-f]{8})?\.safetensors"


@dataclass(frozen=True)
class Division:
    """The files of a folder.

    Attributes:
        shards: the tensors of each shard, by name of the file.
        whole: the name of a single file.
        index: JSON that says which tensor is in which file; None for a single file.
        others: names of small files beside the weights.
    """

    shards: Mapping[str, list[SavedTensor]]
    whole: str
    index: dict[str, object] | None
    others: Iterable[str]

    def index_bytes(self, names: Callable[[str], str] = lambda file: file) -> bytes:
        """The index as a file, with other names of the shards."""
        index = {
            **(self.index or {}),
            "weight_map": {
                tensor.names[0]: names(file)
                for file, shard in self.shards.items()
                for tensor in shard
            },
        }
        return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def divide(contents: Contents, limit: int) -> Division:
    """Fills and names files as huggingface_hub does (`split_state_dict_into_shards_factory`)."""
    shards: list[list[SavedTensor]] = []
    current: list[SavedTensor] = []
    filled = total = 0
    blocks: dict[object, list[SavedTensor]] = {}
    for tensor in contents.tensors:
        if tensor.block is not None:
            block = blocks.setdefault(tensor.block, [])
            block.append(tensor)
            if len(block) > 1:  # it goes where the first one does
                continue
        total += tensor.counted
        if tensor.counted > limit:
            shards.append([tensor])
            continue
        if filled + tensor.counted > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += tensor.counted
    if current or not shards:
        shards.append(current)
    for shard in shards:
        for first in list(shard):
            shard.extend(blocks.get(first.block, [])[1:])
    whole = f"{contents.stem}{_SUFFIX}"
    if len(shards) == 1:
        return Division({whole: shards[0]}, whole, None, contents.files)
    named = {
        f"{contents.stem}-{number:05d}-of-{len(shards):05d}{_SUFFIX}": shard
        for number, shard in enumerate(shards, 1)
    }
    index: dict[str, object] = {"metadata": {**contents.index_metadata, "total_size": total}}
    return Division(named, whole, index, contents.files)


def replace_earlier(replacement: Replacement, division: Division) -> None:
    """Replaces the files of an earlier save.

    If this process is killed, the folder still has one of the two saves, complete. Readers prefer
    the single file to the index, and the index to shards without one. Therefore one rename (of the
    single file or the index) or one removal (of the single file) is the step from the earlier save
    to this one. If shards have the names of earlier shards, there are two such steps: first the
    index refers to the new shards under other names, then to their final names.
    """
    present = {path.name for path in replacement.folder.iterdir()}
    shard_of_this_model = re.compile(re.escape(division.whole.removesuffix(_SUFFIX)) + _SHARD)
    stale = {name for name in present if shard_of_this_model.fullmatch(name)} - {*division.shards}
    if division.index is None:
        _place(replacement, division.others)
        replacement.sync()
        replacement.place(division.whole)
        replacement.sync()
        replacement.remove(_INDEX)
    else:
        stale |= _place_shards(replacement, division, present)
    for name in sorted(stale):
        replacement.remove(name)


def _place_shards(replacement: Replacement, division: Division, present: set[str]) -> set[str]:
    """Returns the names of shards that nothing refers to afterwards."""
    taken = [name for name in division.shards if name in present]
    if not taken:
        _place(replacement, [*division.shards, *division.others])
        replacement.sync()
        _switch(replacement, division, division.index_bytes())
        return set()
    token = secrets.token_hex(4)  # an index may lead to such names of a process that was killed
    others = {name: f"{name.removesuffix(_SUFFIX)}.{token}{_SUFFIX}" for name in division.shards}
    answers = [replacement.place_also(name, other) for name, other in others.items()]
    linked = all(answers)
    if not linked:
        # They stay under their other names, which the index leads to as well.
        for name, other in others.items():
            replacement.rename(name, other)
        _place(replacement, others.values())
    _place(replacement, division.others)
    replacement.sync()
    _switch(replacement, division, division.index_bytes(others.__getitem__))
    if not linked:
        return set(taken)
    _place(replacement, division.shards)
    replacement.sync()
    _switch(replacement, division, division.index_bytes())
    return set(others.values())


def _switch(replacement: Replacement, division: Division, index: bytes) -> None:
    """Puts an index in its place, so that it becomes valid."""
    replacement.write(_INDEX, index)
    replacement.place(_INDEX)
    replacement.sync()
    replacement.remove(division.whole)
    replacement.sync()


def _place(replacement: Replacement, names: Iterable[str]) -> None:
    for name in names:
        replacement.place(name)
