"""Encoded tensors of a checkpoint, such as fp8 with its scales, shown as plain tensors.

C++ finds which raw tensors encode one plain tensor (csrc/checkpoint/encodings), as for
`dormant/checkpoint.h`; here they become items of a checkpoint.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from dormant._extension import _C
from dormant.checkpoint import stores
from dormant.checkpoint.entry import Contents, Entry, Item
from dormant.checkpoint.url import Url
from dormant.recording import patches
from dormant.tensors.storage import realize

Decode: TypeAlias = "bool | torch.dtype"

_CONFIG = "config.json"
# AutoGPTQ and AutoAWQ write their configuration to these files instead of config.json.
_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json")
# Of which nothing but plain weights and counters is made.
_PLAIN_DTYPES = frozenset(
    (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)
)
# No configuration of a model is longer.
_LONGEST_CONFIG = 1 << 24


@dataclass(frozen=True)
class DecodedTensor:
    """A plain tensor, made from the tensors that encode it.

    Attributes:
        entry: its description, whose parts are the entries in the files.
        parts: the inputs of the decoder, in order.
        decoder: makes the plain tensor from them.
        transposed: whether the last two dimensions of the decoder's result are swapped.
        raw: all tensors of the files that this one replaces, by name: the parts, and those that
            are needed only if it stays encoded.
    """

    entry: Entry
    parts: tuple[Item, ...]
    decoder: _C.Decoder
    transposed: bool
    raw: Mapping[str, Item] = field(compare=False)

    def tensor(self) -> torch.Tensor:
        """A lazy tensor."""
        tensor = _C.decode([part.tensor() for part in self.parts], self.decoder)
        if self.transposed:
            tensor = tensor.transpose(-2, -1).contiguous()
        return tensor.to(self.entry.dtype)


def check_decode(decode: object, operation: str) -> None:
    """Raises TypeError or ValueError if `decode` is neither a bool nor a floating-point dtype."""
    if isinstance(decode, bool):
        return
    if not isinstance(decode, torch.dtype):
        raise TypeError(
            f"{operation}: decode must be True, False or a torch.dtype, got "
            f"{type(decode).__name__}."
        )
    if not decode.is_floating_point or decode.itemsize < 2:
        raise ValueError(
            f"{operation}: decode={decode}, expected a floating-point dtype of at least 16 bits, "
            "such as torch.bfloat16."
        )


def decoded(
    items: Mapping[str, Item], contents: Iterable[Contents], decode: Decode
) -> dict[str, Item]:
    """`items` with encoded tensors replaced by plain ones, in the order of their first parts.

    Args:
        items: by name; those that are already decoded stay as they are.
        contents: the files that contain them, beside which config.json may be.
        decode: False decodes nothing; a dtype is the dtype of decoded tensors.

    Warns:
        UserWarning: config.json says that tensors are encoded, but none is.

    Raises:
        ValueError: tensors and config.json contradict each other, or parts are missing.
    """
    raw = {name: item for name, item in items.items() if not is_decoded(item)}
    if decode is False or not raw:
        return dict(items)
    contents = list(contents)
    folders = _folders(contents, raw.values())
    config, config_path = next(_beside(folders, [_CONFIG]), (None, ""))

    def read(name: str) -> bytes:
        with patches.in_use(), torch.no_grad():
            tensor = raw[name].tensor().clone()
            realize(tensor)
            return bytes(tensor.view(-1).view(torch.uint8).tolist())

    encoded, spent, messages = _C.find_encoded(
        [
            (name, item.entry.dtype, item.entry.shape, item.entry.encoding)
            for name, item in raw.items()
            if _is_text(name)
        ],
        config=config,
        config_path=os.fsencode(config_path),
        quantization_files=[
            (os.fsencode(path), text)
            for text, path in _beside(folders, _QUANTIZATION_FILES)
            if text is not None
        ],
        dtype=decode if isinstance(decode, torch.dtype) else None,
        where=os.fsencode(_listed(contents)),
        read=read,
    )
    for message in messages:
        warnings.warn(message.removeprefix("dormant: "), stacklevel=4)
    owners = _owners(spent, [name for name, *_ in encoded])
    first: dict[str, tuple[str, Item]] = {}
    parts: set[str] = set(spent)
    for name, names, decoder, sizes, dtype, transposed in encoded:
        shape = (*sizes[:-2], sizes[-1], sizes[-2]) if transposed else sizes
        sources = tuple(raw[each] for each in names)
        entry = Entry(
            dtype,
            shape,
            math.prod(shape) * dtype.itemsize,
            file=None,
            offset=None,
            parts=tuple(source.entry for source in sources),
            encoding=decoder.name,
        )
        everything = {each: raw[each] for each in (*names, *owners.get(name, ()))}
        made = DecodedTensor(entry, sources, decoder, transposed, everything)
        first[names[0]] = (name, made)
        parts.update(names)
    found: dict[str, Item] = {}
    for name, item in items.items():
        if name in first:
            plain, item = first[name]
            found[plain] = item
        elif name not in parts:
            found[name] = item
    return found


def with_packed(items: Mapping[str, Item], keep: Callable[[str], bool]) -> dict[str, Item]:
    """`items`, with weights that bitsandbytes packed left packed if `keep` says so.

    Args:
        items: by name.
        keep: returns whether to keep the tensor of a name packed.
    """
    found: dict[str, Item] = {}
    for name, item in items.items():
        if isinstance(item, DecodedTensor) and _is_packed(name, item.raw) and keep(name):
            found.update(item.raw)
        else:
            found[name] = item
    return found


def is_decoded(item: Item) -> bool:
    """Whether an item is made from encoded tensors, in any way."""
    return _is_decoded(item.entry)


def _is_decoded(entry: Entry) -> bool:
    return bool(entry.parts) and (bool(entry.encoding) or any(map(_is_decoded, entry.parts)))


def _is_packed(name: str, raw: Mapping[str, Item]) -> bool:
    return f"{name}.absmax" in raw or f"{name.rpartition('.')[0]}.SCB" in raw


def _owners(spent: Iterable[str], plain: Iterable[str]) -> dict[str, list[str]]:
    """The tensors that are left out, grouped by the plain tensor that they belong to."""
    by_name = {name: name for name in plain}
    by_module = {name.rpartition(".")[0]: name for name in by_name}
    owners: dict[str, list[str]] = {}
    for name in sorted(spent):
        # X.weight.quant_map and X.weight.quant_state.KIND belong to X.weight, X.SCB to X.
        for place in (name.rpartition(".")[0], name.partition(".quant_state.")[0]):
            owner = by_name.get(place) or by_module.get(place)
            if owner is not None:
                owners.setdefault(owner, []).append(name)
                break
    return owners


def _folders(contents: Iterable[Contents], items: Iterable[Item]) -> list[Path | Url]:
    """The folders that may contain configurations; without URLs if no tensor can be encoded."""
    may_be_encoded = any(
        item.entry.encoding or item.entry.dtype not in _PLAIN_DTYPES for item in items
    )
    folders: list[Path | Url] = []
    for content in contents:
        if content.folder is not None and may_be_encoded:
            folders.append(content.folder)
        elif not content.file.is_remote:
            folders.append(Path(content.file.path).parent)
    return list(dict.fromkeys(folders))


def _beside(
    folders: Iterable[Path | Url], names: Iterable[str]
) -> Iterator[tuple[bytes | None, str]]:
    """The configurations of these names in folders, and their paths.

    Raises:
        OSError: an existing one cannot be read. Without it, encoded weights may look plain.
    """
    for folder in folders:
        for name in names:
            path = folder / name
            text = None
            if isinstance(path, Url):
                text = stores.read_small(path, _LONGEST_CONFIG)
            elif path.is_file() and path.stat().st_size <= _LONGEST_CONFIG:
                text = path.read_bytes()
            if text is not None:
                yield text, str(path)


def _is_text(name: str) -> bool:
    """Whether a name is text; names in files of torch.save may be any object."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(contents: list[Contents]) -> str:
    first = contents[0].file.path
    return first if len(contents) == 1 else f"{first} and {len(contents) - 1} more files"
