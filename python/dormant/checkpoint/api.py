"""`open_checkpoint`: the tensors of checkpoint files by name, lazy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dormant.checkpoint.composition import add_differences, converted, join
from dormant.checkpoint.decoding import Decode, check_decode, decoded, is_decoded, with_packed
from dormant.checkpoint.entry import (
    Contents,
    Entry,
    Item,
    place_of,
)
from dormant.checkpoint.files import find_groups
from dormant.checkpoint.opening import open_group, read_remote
from dormant.checkpoint.pretrained import Naming
from dormant.checkpoint.ranges import over_reader
from dormant.checkpoint.torch_file import Fits, Foreign
from dormant.checkpoint.verification import Verification, verify
from dormant.recording import patches
from dormant.reporting.progress import Callback
from dormant.tensor_parallel.rules import Rules
from dormant.tensors.targets import MadeAnew
from dormant.text.table import format_bytes, format_count, format_html_table

PathLike = str | os.PathLike[str]


class Checkpoint(MadeAnew, Mapping[str, torch.Tensor]):
    """A mapping from names to the lazy tensors of checkpoint files; created by `open_checkpoint`.

    Each access creates a lazy tensor, whose data is read when it is materialized. Tensors that
    share memory in a file also share it here as long as one of them is referenced, so
    `dict(checkpoint)` keeps ties. The files stay open while the checkpoint or one of its lazy
    tensors exists.

    Example:
        >>> import pathlib, tempfile, torch, dormant
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.pt")
        ...     torch.save({"weight": torch.ones(2, 3)}, path)
        ...     checkpoint = dormant.open_checkpoint(path)
        >>> checkpoint.entries["weight"].shape, dormant.is_lazy(checkpoint["weight"])
        ((2, 3), True)
        >>> half = {name: tensor.to(torch.float16) for name, tensor in checkpoint.items()}
        >>> dormant.is_lazy(half["weight"])
        True
    """

    def __init__(
        self,
        items: Mapping[str, Item],
        contents: Sequence[Contents],
        metadata: Mapping[str, Any],
        *,
        are_differences: bool = False,
    ) -> None:
        self._items = dict(items)
        self._are_differences = are_differences
        self._contents = tuple(contents)
        self._metadata_of_files = dict(metadata)
        self._entries = {name: item.entry for name, item in self._items.items()}

    @property
    def are_differences(self) -> bool:
        """Whether the tensors are differences that must be added to another checkpoint."""
        return self._are_differences

    def __getitem__(self, name: str) -> torch.Tensor:
        """A lazy tensor."""
        item = self._items.get(name)
        if item is None:
            similar = get_close_matches(str(name), self._items, 3)
            raise KeyError(
                f"{self._title()} has no tensor {name!r}; "
                + (f"similar names: {similar}." if similar else f"it has {len(self)}.")
            )
        with patches.in_use():
            return item.tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    # Those of Mapping would compare, and so read, tensors.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The dtype, the shape and the position of the bytes for each name."""
        return MappingProxyType(self._entries)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of the index and the files; the first value if several have the same key."""
        return MappingProxyType(self._metadata_of_files)

    @property
    def files(self) -> tuple[Path | str, ...]:
        """The files that contain tensors, in the order in which they were opened.

        For a file at a URL or of a reader, this is its URL or name as a string, without secrets.
        """
        return tuple(place_of(content.file) for content in self._contents)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of all tensors; shared elements are counted for each name."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def extra(self) -> dict[str, Any]:
        """Other contents of files of torch.save: numbers, the state of an optimizer.

        Objects of plain classes are values. All others, including pickled modules, are records
        (`dormant.checkpoint.inert.Record`) with their class, arguments and attributes. Both may
        contain lazy tensors. Each access creates the values again. If several files have the same
        name, the first value is used.

        Raises:
            ValueError: a tensor's bytes are not in the file, or the values nest too deeply.
            NotImplementedError: a tensor is not a view of bytes in the file.
        """
        found: dict[str, Any] = {}
        with patches.in_use():
            for content in self._contents:
                found = {**content.extra(), **found}
        return found

    @property
    def foreign(self) -> tuple[str, ...]:
        """Classes and functions that files of torch.save name and weights-only loading refuses.

        None of them was imported or called. The objects that they would create are records in
        `extra` (`dormant.checkpoint.inert.Record`).
        """
        return tuple(sorted({name for content in self._contents for name in content.foreign}))

    def verify(self, *, progress: bool | Callback | None = None) -> Verification:
        """Reads every byte of the files and compares it with the files' checksums.

        Files of torch.save have a CRC-32 for each storage. Other formats have none, so `verify`
        only checks that their bytes can be read.

        Args:
            progress: True shows a progress bar, False does not; a function is called with
                (done, total) bytes; None shows a bar if stderr is a terminal and it takes longer
                than a second.

        Returns:
            What was read.

        Raises:
            ValueError: checksums do not match (the message lists all of them), or a file changed
                since it was opened.
            OSError: the system could not read a file; has its errno.

        Example:
            >>> import pathlib, tempfile, torch, dormant
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "model.pt")
            ...     torch.save({"weight": torch.ones(2, 3)}, path)
            ...     result = dormant.open_checkpoint(path).verify()
            >>> result.tensors, result.unchecked_nbytes
            (1, 0)
        """
        return verify(self._contents, progress)

    def for_model(self, model: torch.nn.Module) -> Checkpoint:
        """Converts the names and layouts to those of a transformers model; the tensors stay lazy.

        The rules are those of the installed transformers, as in its `from_pretrained`: names
        change, experts that are separate in the files become stacks, and so on. `load` does this
        automatically; use this method to inspect or change the result before loading it.

        Args:
            model: the model, lazy or real. Only its configuration, names and shapes are used; the
                result refers to it. Nothing changes for a model of another library, or if the
                checkpoint already has the model's names and shapes.

        Returns:
            The checkpoint under the model's names; `entries` says which parts of the files each
            tensor is made from. Names that no rule converts stay as they are.

        Raises:
            TypeError: `model` is not a module.
            ValueError: the rules cannot be applied, because the checkpoint lacks some of the
                tensors that a rule needs, or two of its names get the same name in the model. The
                message has the checkpoint's names and the model's.

        Example:
            >>> import tempfile, transformers, dormant
            >>> config = transformers.MixtralConfig(
            ...     hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            ...     num_key_value_heads=1, vocab_size=16, num_local_experts=4,
            ... )
            >>> model = transformers.MixtralForCausalLM(config)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     checkpoint = dormant.open_checkpoint(folder)
            ...     converted = checkpoint.for_model(model)
            >>> "model.layers.0.block_sparse_moe.experts.3.w2.weight" in checkpoint
            True
            >>> stack = converted["model.layers.0.mlp.experts.down_proj"]
            >>> stack.shape, dormant.is_lazy(stack)
            (torch.Size([4, 8, 8]), True)
        """
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"for_model: model must be a module, got {type(model).__name__}.")
        with patches.in_use():
            items = converted(self._items, model, self.naming)
        if items is None:
            return self
        return Checkpoint(
            items, self._contents, self._metadata_of_files, are_differences=self._are_differences
        )

    @property
    def is_decoded(self) -> bool:
        """Whether the checkpoint decodes tensors that are encoded in the files."""
        return any(map(is_decoded, self._items.values()))

    def keeping_packed(self, keep: Callable[[str], bool]) -> Checkpoint:
        """The same checkpoint, with weights packed by bitsandbytes left packed if `keep(name)`."""
        return Checkpoint(
            with_packed(self._items, keep),
            self._contents,
            self._metadata_of_files,
            are_differences=self._are_differences,
        )

    @property
    def _metadata(self) -> dict[str, Any] | None:
        """The versions of the saved modules, which `load_state_dict` reads."""
        versions = [content.versions for content in self._contents if content.versions is not None]
        if not versions:
            return None
        merged: dict[str, Any] = {}
        for one in versions:
            merged = {**one, **merged}
        return merged

    @property
    def naming(self) -> Naming | None:
        """How names become those of a model, for formats with their own names; else None."""
        found = (content.naming for content in self._contents)
        return next((naming for naming in found if naming is not None), None)

    def _title(self) -> str:
        files = [content.file.path for content in self._contents]
        return f"Checkpoint({files[0] if len(files) == 1 else f'{len(files)} files'})"

    def __repr__(self) -> str:
        """A one-line description; reads nothing."""
        files = ", ".join(repr(str(path)) for path in self.files[:3])
        more = f", ... {len(self.files)} files" if len(self.files) > 3 else ""
        tensors = format_count(len(self), "tensor")
        return f"Checkpoint({files}{more}: {tensors}, {format_bytes(self.nbytes)})"

    def _repr_html_(self) -> str:
        """A table of the tensors for notebooks; reads nothing."""
        rows = [
            (
                name,
                "x".join(map(str, entry.shape)) or "scalar",
                str(entry.dtype).removeprefix("torch."),
                format_bytes(entry.nbytes),
                f"{len(entry.parts)} parts" if entry.file is None else Path(entry.file).name,
            )
            for name, entry in self._entries.items()
        ]
        return format_html_table(("tensor", "shape", "dtype", "bytes", "file"), rows, [repr(self)])


def open_checkpoint(
    path_or_paths: PathLike | Iterable[PathLike] | None = None,
    *,
    key: str | None = None,
    rules: Rules | None = None,
    decode: Decode = True,
    foreign: Foreign = "inert",
    storage_options: Mapping[str, Any] | None = None,
    reader: object = None,
) -> Checkpoint:
    """Opens checkpoint files as a mapping from names to lazy tensors.

    Everything in the files except the data of the tensors is read and checked at once. (For a
    tensor-parallel set, the tensors that every rank has whole are also read, to compare them.)

    Args:
        path_or_paths: one of these: a safetensors file; a GGUF file, or any part of a split one; a
            file of torch.save in the zip or older layout, from which nothing is imported or called;
            an index of a sharded checkpoint (`*.index.json`, `*.index.VARIANT.json`, also
            accelerate's flat index); a folder. In a folder, the first that exists is opened:
            model.safetensors, model.safetensors.index.json, pytorch_model.bin,
            pytorch_model.bin.index.json, a tensor-parallel set (consolidated.00.pth, ...;
            consolidated.00-of-02.model.pth, ...), a checkpoint of torch.distributed.checkpoint
            (.metadata, whose path can also be given), or the only checkpoint *.safetensors, *.bin,
            *.pth, *.pt or *.gguf. A file without a variant comes before its variants
            (model.fp16.bin), and an index before its files. Several paths are opened in order.
            Their names must differ, except that differences (consolidated.00-of-02.model-diff.pth,
            ...) are added to the tensors of the paths before them. Each path may also be a URL:
            http:// and https:// (in a folder, the first four names are tried), or any that fsspec
            supports: hf://ORG/REPO, s3://, gs://, memory://. The bytes of a tensor are read when it
            is materialized, in large ranges.
        key: the name of the mapping or module in a file of torch.save that holds the tensors; ""
            is the top level of the file. None selects the only mapping, at the top level or in it
            (often "model" or "state_dict"), that holds more than one tensor, or the only one that
            holds any. A pickled module has the names of its `state_dict()`. Nested containers have
            names with dots, if nothing else holds tensors. In a folder of
            torch.distributed.checkpoint, `key` is a mapping of the saved state dict ("model", or
            nested "app.model"); None and "" select all tensors under their full names.
        rules: how tensor-parallel parts are merged, as for `dormant.tensor_parallel.merge`; None
            uses LLaMA's rules.
        decode: True shows encoded tensors (fp8 and mxfp4 with their scales, 4-bit codes, ...) as
            plain tensors, under the plain name and in the dtype that the encoding's library decodes
            to; a dtype selects that dtype instead. They are decoded in small pieces when they are
            materialized. False shows the tensors as they are in the files. `entries` names the
            encoding.
        foreign: what to do with objects of classes that `torch.load(weights_only=True)` refuses:
            "inert" shows them in `extra` as records of their contents; "error" refuses the file.
        storage_options: options for the filesystem of a URL, as in fsspec; for HTTP {"headers":
            {name: value}}.
        reader: an object to read one file from, instead of a path. It has `size`, the number of
            bytes; `pread(offset, count)`, which returns exactly those bytes as `bytes` or another
            buffer, and which any number of threads may call at the same time; and optionally
            `name`, for messages.

    Returns:
        The checkpoint.

    Warns:
        UserWarning: config.json says that tensors are encoded, but none is.

    Raises:
        TypeError: `decode` has another type; a path and `reader` are given, or neither; or `reader`
            is not such an object.
        ImportError: a library that the URL needs (s3fs, gcsfs, huggingface_hub, ...) is not
            installed.
        ValueError: a path is empty; a server sends only whole files, or the file at a URL changed;
            a file is damaged, contradicts itself or the index, holds no tensors by name, or holds
            several mappings of them; `foreign` is "error" and a file has such objects; a folder has
            nothing to open or several choices; a name is in two files; encoded tensors lack a part
            or contradict config.json; `decode` is a dtype that weights cannot have.
        KeyError: a file has no mapping `key`; tensor-parallel parts lack names, or no rule matches.
        NotImplementedError: the file has torch's tar layout, or tensors that are not strided.
        OSError: the system or a server does not allow a file to be read; has its errno.

    Example:
        >>> import pathlib, tempfile, torch, dormant
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.pt")
        ...     torch.save({"model": {"bias": torch.arange(3.0)}, "step": 7}, path)
        ...     checkpoint = dormant.open_checkpoint(path)
        ...     bias = checkpoint["bias"][1:]
        ...     _ = dormant.materialize(bias)
        >>> bias, checkpoint.extra
        (tensor([1., 2.]), {'step': 7})
    """
    if (path_or_paths is None) == (reader is None):
        raise TypeError(
            "open_checkpoint: got "
            + ("neither a path nor a reader." if reader is None else "both a path and a reader.")
        )
    check_decode(decode, "open_checkpoint")
    if path_or_paths is None:
        content = read_remote(over_reader(reader), "", key, None, foreign)
        plain = decoded(content.tensors, [content], decode)
        return Checkpoint(plain, [content], content.metadata)
    single = isinstance(path_or_paths, str | os.PathLike)
    paths = [path_or_paths] if isinstance(path_or_paths, str | os.PathLike) else [*path_or_paths]
    if not paths:
        raise ValueError("open_checkpoint: got no path, expected at least one.")
    groups = find_groups(paths, storage_options)
    items: dict[str, Item] = {}
    contents: list[Contents] = []
    metadata: dict[str, Any] = {}
    raw: dict[str, Item] = {}  # to be decoded together: codes and scales may be in two paths
    for group in groups:
        opened = open_group(group, key, rules, None, decode, foreign)
        contents += opened.contents
        metadata = {**opened.metadata, **metadata}
        if group.kind == "differences" and not single and (items or raw):
            join(items, decoded(raw, contents, decode))
            raw = {}
            add_differences(items, decoded(opened.items, opened.contents, decode))
        else:
            join(raw, opened.items)
    join(items, decoded(raw, contents, decode))
    are_differences = all(group.kind == "differences" for group in groups)
    return Checkpoint(items, contents, metadata, are_differences=are_differences)


def open_each(
    paths: Sequence[PathLike], fits: Fits, foreign: Foreign = "inert"
) -> dict[int, Checkpoint]:
    """Opens checkpoints that may have names in common.

    Args:
        paths: as for `open_checkpoint`; the parts of a tensor-parallel set make one checkpoint.
        fits: returns how many of the given names a model has; used to choose among the mappings in
            a file of torch.save.
        foreign: as for `open_checkpoint`.

    Returns:
        The checkpoints in order, each by the position of its first path.

    Raises:
        ValueError, KeyError, NotImplementedError, OSError: as by `open_checkpoint`.
    """
    found: dict[int, Checkpoint] = {}
    for group in find_groups(paths):
        opened = open_group(group, None, None, fits, True, foreign)
        found[group.position] = Checkpoint(
            decoded(opened.items, opened.contents, True),
            opened.contents,
            opened.metadata,
            are_differences=group.kind == "differences",
        )
    return found
