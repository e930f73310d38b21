"""What is at a path or URL: a file, the index of several, or the parts of a tensor-parallel set.

Only names are used.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dormant.checkpoint import stores
from dormant.checkpoint.url import Url, is_url

Kind = Literal["file", "index", "parts", "differences", "distributed", "split"]
Place: TypeAlias = Path | Url

# Of a variant: model.safetensors.index.fp16.json.
_INDEX = re.compile(r".*\.index(\.[^.]+)?\.json", re.ASCII | re.DOTALL)
# LLaMA: consolidated.00.pth; LLaMA2-Accessory: consolidated.00-of-02.model.pth, and .model-diff.pth
# for differences to a base.
_PART = re.compile(
    r"consolidated\.(?P<rank>\d{1,9})(-of-(?P<of>\d{1,9})\.(?P<what>model|model-diff))?\.pth",
    re.ASCII,
)

# What transformers takes from a folder, in its order (transformers/modeling_utils.py).
_FIRST = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Then what is of the first of these kinds.
_KINDS = (".safetensors", ".bin", ".pth", ".pt", ".gguf")
# model-00001-of-00004.safetensors; with a variant model.fp16-00001-of-00004.safetensors or, from
# older libraries, model-00001-of-00004.fp16.safetensors.
_SHARD = re.compile(r".*-\d+-of-\d+(\.[^.]+)?", re.ASCII | re.DOTALL)

# torch.distributed.checkpoint: the file that refers to the files of all ranks; and, if there is no
# such file, safetensors files of its HuggingFaceStorageWriter.
_DISTRIBUTED = ".metadata"
_DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", re.ASCII)

# llama.cpp's gguf-split: model-00001-of-00003.gguf.
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<of>\d{5})\.gguf", re.ASCII | re.DOTALL)

_NAMED = 20  # parts that a message lists
_SHOWN = 200  # characters of a path that is too long


@dataclass(frozen=True)
class Group:
    """Files that together form one mapping from names to tensors.

    Attributes:
        kind: "file"; "index": JSON that names the file of each tensor; "parts": the files of all
            tensor-parallel ranks; "differences": the same, to be added to the tensors opened
            before; "distributed": of torch.distributed.checkpoint; "split": the parts of a split
            GGUF file.
        files: the file, the index, or the parts in order; for torch.distributed.checkpoint its
            metadata, or all files if it has none.
        position: the index of the path that it comes from, or of its first path.
    """

    kind: Kind
    files: tuple[Place, ...]
    position: int = 0


def find_groups(
    paths: Sequence[str | os.PathLike[str]], options: Mapping[str, Any] | None = None
) -> list[Group]:
    """Finds what to open, in the order of `paths`, which may be URLs; `options` are for fsspec.

    Files of one tensor-parallel set that are listed separately form one group, at the position of
    the first.

    Raises:
        OSError: no such file or folder, or the system does not allow access.
        ValueError: a path is empty; a folder has nothing to open or more than one choice; or parts
            are missing.
    """
    groups: list[Group] = []
    listed = [_existing(path, options or {}) for path in paths]
    folders = [_is_folder(path) for path in listed]
    sets: dict[tuple[Place, str], list[Place]] = {}
    done: set[tuple[Place, str]] = set()
    if len(listed) > 1:
        for path, is_dir in zip(listed, folders, strict=True):
            if (found := _PART.fullmatch(path.name)) and not is_dir:
                sets.setdefault((path.parent, _set_name(found)), []).append(path)
    for position, (path, is_dir) in enumerate(zip(listed, folders, strict=True)):
        part = None if is_dir else _PART.fullmatch(path.name)
        if is_dir:
            group = _find_in(path) if isinstance(path, Path) else _find_at(path)
        elif part is not None and (path.parent, _set_name(part)) in sets:
            # A set comes where the first of its files is listed.
            files = sets.pop((path.parent, _set_name(part)))
            done.update((path.parent, file.name) for file in files)
            group = _parts(files, path.parent)
        elif (path.parent, path.name) in done:
            continue
        elif part is not None and part["what"] == "model-diff":
            group = Group("differences", (path,))
        else:
            group = _single(path)
            if group.kind == "split" and any(group.files == other.files for other in groups):
                continue
        groups.append(replace(group, position=position))
    return groups


def _is_folder(place: Place) -> bool:
    if isinstance(place, Path):
        return place.is_dir()
    return stores.is_folder(place)


def _existing(path: str | os.PathLike[str], options: Mapping[str, Any]) -> Place:
    """The path, which exists; or the URL, which may exist."""
    text = os.fspath(path)
    if isinstance(text, str) and is_url(text):
        if not text.lower().startswith("file://"):
            return Url(text, options)
        path = url2pathname(urlsplit(text).path)
    if not text:  # Path("") is the current folder
        raise ValueError(
            "open_checkpoint: got an empty path, expected the path of a checkpoint file, an index "
            "or a folder ('.' is the current folder)."
        )
    try:
        found = Path(path)
        found.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT,
            f"open_checkpoint: no such file or folder: {text!r}",
        ) from None
    except OSError as error:
        what = f"open_checkpoint: cannot access {text[:_SHOWN]!r}: {error.strerror}"
        raise OSError(error.errno, what) from error
    except ValueError as error:
        raise ValueError(f"open_checkpoint: {text!r} is not a path: {error}.") from error
    return found


def _find_in(folder: Path) -> Group:
    for name in _FIRST:
        if (folder / name).is_file():
            if (folder / _DISTRIBUTED).is_file():
                raise _ambiguous(folder, [name, _DISTRIBUTED])
            return _single(folder / name)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return _choose(names, folder)


def _find_at(folder: Url) -> Group:
    names = stores.names_at(folder)
    if names is None:
        names = []
        for name in (*_FIRST, _DISTRIBUTED):
            if stores.exists(folder / name):
                return _single(folder / name)
    return _choose(names, folder)


def _choose(names: Sequence[str], folder: Place) -> Group:
    """Which of the files in a folder to open."""
    for name in _FIRST:
        if name in names:  # a save has replaced one of them by another in the meantime
            return _single(folder / name)
    sets: dict[str, list[Place]] = {}
    for name in names:
        if found := _PART.fullmatch(name):
            sets.setdefault(_set_name(found), []).append(folder / name)
    if len(sets) == 1:
        return _parts(next(iter(sets.values())), folder)
    if sets:
        raise _ambiguous(folder, [f"{files[0].name} ..." for files in sets.values()])
    if _DISTRIBUTED in names:
        return _single(folder / _DISTRIBUTED)
    if shards := [name for name in names if _DISTRIBUTED_SHARD.fullmatch(name)]:
        return Group("distributed", tuple(folder / name for name in shards))
    for kind in _KINDS:
        if choices := _choices(names, kind):
            return _single(folder / _plain(choices, folder, kind))
    hint = "Pass the path of a file."
    if any(name.endswith(".distcp") for name in names):
        hint = (
            f"It is a folder of torch.distributed.checkpoint without {_DISTRIBUTED}: the save did "
            "not finish, or used use_collectives=False, which only torch's own load can read."
        )
    raise ValueError(
        f"open_checkpoint: the folder {str(folder)!r} contains no checkpoint; files: "
        f"{names[:20]}. Expected one of {', '.join(_FIRST)}, a tensor-parallel set "
        f"(consolidated.00.pth, ...), or a single file *{' or *'.join(_KINDS)} or its index. {hint}"
    )


def _single(path: Place) -> Group:
    if path.name == _DISTRIBUTED:
        return Group("distributed", (path,))
    if found := _SPLIT.fullmatch(path.name):
        return _split(path, found["stem"], int(found["number"]), int(found["of"]))
    return Group("index" if is_index(path.name) else "file", (path,))


def is_index(name: str) -> bool:
    """Whether a file of this name is an index, of a variant or not."""
    return _INDEX.fullmatch(name) is not None


def _choices(names: Sequence[str], kind: str) -> list[str]:
    """The checkpoints of one kind among the names of files: indices, and files without an index."""
    files = [name for name in names if name.endswith(kind)]
    indices = [name for name in names if is_index(name) and f"{kind}.index." in name]
    if indices:
        stems = {name.partition(kind)[0] for name in indices}
        alone = [f for f in files if not _SHARD.fullmatch(f.removesuffix(kind))]
        # Any other name is one of the files that an index names.
        return [*indices, *(f for f in alone if any(f.startswith(f"{s}.") for s in stems))]
    if kind == ".gguf":
        # The first part of a split file that exists represents all parts.
        first_parts: dict[str, str] = {}
        for name in files:
            split = _SPLIT.fullmatch(name)
            first_parts.setdefault(f"{split['stem']}-of-{split['of']}" if split else name, name)
        return list(first_parts.values())
    if len(files) > 1:
        # accelerate has an index of files with any names: weight_map.index.json.
        of_kinds = tuple(f"{each}.index.json" for each in _KINDS)
        others = [n for n in names if n.endswith(".index.json") and not n.endswith(of_kinds)]
        return others or files
    return files


def _plain(choices: Sequence[str], folder: Place, kind: str) -> str:
    """The only choice, or the one of which all others are variants.

    Raises:
        ValueError: there is no such choice.
    """
    if len(choices) == 1:
        return choices[0]
    for name in choices:
        stem, _, rest = name.partition(kind)
        others = [other for other in choices if other != name]
        if rest in ("", ".index.json") and all(_is_variant(o, stem, kind) for o in others):
            return name
    raise _ambiguous(folder, choices)


def _is_variant(name: str, stem: str, kind: str) -> bool:
    """Whether a name is like model.fp16.safetensors or model.safetensors.index.fp16.json."""
    own, _, rest = name.partition(kind)
    return own.startswith(f"{stem}.") or (own == stem and rest not in ("", ".index.json"))


def _split(path: Place, stem: str, number: int, count: int) -> Group:
    """All parts of a split file, whichever part is given, if none is missing."""
    names = [f"{stem}-{each:05}-of-{count:05}.gguf" for each in range(1, count + 1)]
    missing: list[str] = []
    if isinstance(path, Path):  # opening a URL says whether it exists
        folder = path.parent
        missing = [*islice((name for name in names if not (folder / name).exists()), _NAMED)]
    if missing or not 1 <= number <= count:
        raise ValueError(
            f"open_checkpoint: {str(path)!r} is part {number} of {count} according to its name, "
            f"but these parts are not in the folder: {missing}. Get all parts."
        )
    return Group("split", tuple(path.parent / name for name in names))


def _ambiguous(folder: Place, names: Iterable[str]) -> ValueError:
    return ValueError(
        f"open_checkpoint: the folder {str(folder)!r} contains more than one checkpoint: "
        f"{', '.join(names)}. Pass the path of the one to open, or a list of them."
    )


def _set_name(part: re.Match[str]) -> str:
    """Equal for files of the same set."""
    return f"-of-{part['of']}.{part['what']}" if part["of"] else ""


def _parts(files: Sequence[Place], folder: Place) -> Group:
    """The files of a set by rank, if none is missing."""
    ranks: dict[int, Place] = {}
    count = 0
    for path in files:
        found = _PART.fullmatch(path.name)
        assert found is not None
        rank = int(found["rank"])
        if rank in ranks:
            raise ValueError(
                f"open_checkpoint: {ranks[rank].name} and {path.name} in {str(folder)!r} are both "
                f"part {rank} of one set. Pass each once."
            )
        ranks[rank] = path
        count = int(found["of"] or 0)
    # A range, since a name may claim any number of parts.
    expected = range(count or max(ranks) + 1)
    extra = sorted(rank for rank in ranks if rank not in expected)
    if extra or len(ranks) != len(expected):
        missing = [*islice((rank for rank in expected if rank not in ranks), _NAMED)]
        raise ValueError(
            f"open_checkpoint: the tensor-parallel set of {len(ranks)} parts in {str(folder)!r} "
            f"is missing parts {missing}"
            + (f" and has parts {extra[:_NAMED]} in addition to its {count}" if extra else "")
            + ". Get all parts."
        )
    differences = next(iter(ranks.values())).name.endswith("model-diff.pth")
    kind: Kind = "differences" if differences else "parts"
    return Group(kind, tuple(ranks[rank] for rank in expected))
