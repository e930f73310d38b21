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
from dormant.text.table import format_bytes, format_html_table

PathLike = str | os.PathLike[str]


class Checkpoint(MadeAnew, Mapping[str, torch.Tensor]):
    """The tensors of checkpoint files by name; made by `open_checkpoint`.

    A tensor is made when it is asked for, is lazy, and is read when it is materialized. Tensors
    that share memory in a file share it here as long as one of them is held, so `dict(checkpoint)`
    keeps ties. The files stay open while the checkpoint or one of its lazy tensors lives.

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
        """Whether the tensors are differences, to be added to those of another checkpoint."""
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
        """For each name the dtype, the shape, and where the bytes lie."""
        return MappingProxyType(self._entries)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the index and the files say of themselves; of several values the first."""
        return MappingProxyType(self._metadata_of_files)

    @property
    def files(self) -> tuple[Path | str, ...]:
        """The files that hold tensors, in the order in which they were opened.

        One at a URL, or of a reader, is its URL or name as a string, without secrets.
        """
        return tuple(place_of(content.file) for content in self._contents)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of all tensors, shared ones counted for each name."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def extra(self) -> dict[str, Any]:
        """What files of torch.save hold beside tensors by name: numbers, an optimizer's state.

        Objects of classes that are not plain are records that say what they hold: their class,
        arguments and attributes, with lazy tensors in them. A pickled module is such a record, too.
        It is made anew for each access, with lazy tensors in it. Of several files' values under one
        name it has the first.

        Raises:
            ValueError: it has a tensor whose bytes are not in the file, or nests without end.
            NotImplementedError: it has a tensor that is no view of bytes in the file.
        """
        found: dict[str, Any] = {}
        with patches.in_use():
            for content in self._contents:
                found = {**content.extra(), **found}
        return found

    @property
    def foreign(self) -> tuple[str, ...]:
        """What files of torch.save name and weights-only loading refuses: classes and functions.

        None of them was imported or called: what they would make are records in `extra`
        (`dormant.checkpoint.inert.Record`).
        """
        return tuple(sorted({name for content in self._contents for name in content.foreign}))

    def verify(self, *, progress: bool | Callback | None = None) -> Verification:
        """Reads every byte of the files and compares it with the files' checksums.

        Files of torch.save have a CRC-32 for each storage; other formats have none, so that only
        their existence is verified.

        Args:
            progress: True shows a progress bar, False none; a function is called with (done, total)
                bytes; None shows a bar where stderr is a terminal and it takes over a second.

        Returns:
            What was read.

        Raises:
            ValueError: checksums that do not fit, all of them listed; or a file changed since it
                was opened.
            OSError: the system could not read a file; with its errno.

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
        """The tensors under the names and in the layouts of a model of transformers, still lazy.

        They are converted by the rules of the installed transformers, as its `from_pretrained`
        does: names change, experts that the files have one by one become stacks, and so on.
        `load` does this by itself; here the result can be looked at and changed before.

        Args:
            model: the model, lazy or real, of which only configuration, names and shapes are used;
                the result refers to it. For a model of another library, and where the checkpoint
                has the model's own names and shapes, nothing changes.

        Returns:
            The checkpoint by the model's names; `entries` says of which parts of files a tensor is
            made. Names that no rule makes the model's stay as they are.

        Raises:
            TypeError: `model` is not a module.
            ValueError: the rules cannot be applied: the checkpoint lacks some of the tensors that
                are put together, or two of its names get one name in the model. The message has
                the checkpoint's names and the model's.

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
        """Whether tensors are shown that are kept encoded in the files."""
        return any(map(is_decoded, self._items.values()))

    def keeping_packed(self, keep: Callable[[str], bool]) -> Checkpoint:
        """The same, with what bitsandbytes packed as it is in the files, where `keep(name)`."""
        return Checkpoint(
            with_packed(self._items, keep),
            self._contents,
            self._metadata_of_files,
            are_differences=self._are_differences,
        )

    @property
    def _metadata(self) -> dict[str, Any] | None:
        """What `load_state_dict` looks for: the versions of the modules that were saved."""
        versions = [content.versions for content in self._contents if content.versions is not None]
        if not versions:
            return None
        merged: dict[str, Any] = {}
        for one in versions:
            merged = {**one, **merged}
        return merged

    @property
    def naming(self) -> Naming | None:
        """How its names become a model's, where the format has names of its own."""
        found = (content.naming for content in self._contents)
        return next((naming for naming in found if naming is not None), None)

    def _title(self) -> str:
        files = [content.file.path for content in self._contents]
        return f"Checkpoint({files[0] if len(files) == 1 else f'{len(files)} files'})"

    def __repr__(self) -> str:
        """One line; reads nothing."""
        files = ", ".join(repr(str(path)) for path in self.files[:3])
        more = f", ... {len(self.files)} files" if len(self.files) > 3 else ""
        return f"Checkpoint({files}{more}: {len(self)} tensors, {format_bytes(self.nbytes)})"

    def _repr_html_(self) -> str:
        """A table of the tensors, as notebooks show it; reads nothing."""
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
    """Opens checkpoint files as a mapping of names to lazy tensors.

    Everything in them but the tensors' bytes is read and checked at once. (Of a tensor-parallel set
    the tensors that every rank has whole are compared, which reads those.)

    Args:
        path_or_paths: a safetensors file; a GGUF file, of a split one any part; a file of
            torch.save, zip or older layout, of which nothing is imported or called; an index of a
            sharded checkpoint (`*.index.json`, `*.index.VARIANT.json`, also accelerate's flat one);
            or a folder, in which are looked for, in this order: model.safetensors,
            model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json, a
            tensor-parallel set (consolidated.00.pth, ...; consolidated.00-of-02.model.pth, ...),
            one of torch.distributed.checkpoint (.metadata, whose path can be given as well), and
            the only checkpoint *.safetensors, *.bin, *.pth, *.pt or *.gguf, of several variants
            (model.fp16.bin) the one without a variant. An index comes before its files. Several
            paths are opened in order: their names must differ, except that differences
            (consolidated.00-of-02.model-diff.pth, ...) are added to what comes before. Each may be
            a URL as well: http:// and https:// (in a folder the first four names are tried), or
            any of fsspec: hf://ORG/REPO, s3://, gs://, memory://. Its bytes are read when tensors
            are, in large ranges.
        key: which mapping or module in a file of torch.save holds the tensors, "" the file's own.
            None takes the only one, the file's own or one in it ("model" or "state_dict", often),
            that holds more than one tensor, or any. A pickled module has the names of its
            `state_dict()`; nested containers have names with dots, where nothing else has tensors.
            In a folder of torch.distributed.checkpoint it is a mapping of the state dict that was
            saved ("model", or nested "app.model"); None and "" take all tensors under their full
            names.
        rules: how tensor-parallel parts are merged, as for `dormant.tensor_parallel.merge`; None
            means LLaMA's.
        decode: True shows tensors that are kept encoded (fp8 and mxfp4 with their scales, 4-bit
            codes, ...) as the plain tensors that they stand for, under the plain name and in the
            dtype that the library concerned decodes to; a dtype asks for that one instead. They are
            decoded in small pieces when they are materialized. False shows the tensors as they are
            in the files. `entries` names the encoding.
        foreign: what becomes of objects of classes that `torch.load(weights_only=True)` does not
            know: "inert" makes them records that say what they hold, as `extra` shows; "error"
            refuses the file.
        storage_options: what the filesystem of a URL gets, as fsspec takes it; for HTTP {"headers":
            {name: value}}.
        reader: an object to read one file from, in place of a path: with `size`, its bytes;
            `pread(offset, count)`, which returns exactly those bytes as `bytes` or another buffer,
            and which any number of threads call at a time; and, if it likes, `name`, for messages.

    Returns:
        The checkpoint.

    Warns:
        UserWarning: config.json says that tensors are encoded, and none is.

    Raises:
        TypeError: `decode` is of another type; a path and `reader` are given, or neither; or
            `reader` is not such an object.
        ImportError: what a URL needs (s3fs, gcsfs, huggingface_hub, ...) is not installed.
        ValueError: a path is empty; a server sends whole files only, or a URL's file is not what it
            was; a file is damaged, contradicts itself or the index, or holds no tensors by name, or
            several mappings of them; `foreign` is "error" and a file has such objects; a folder has
            nothing to open or several choices; a name is in two files; encoded tensors lack a part,
            or contradict config.json; `decode` is a dtype that nothing is computed in.
        KeyError: a file has no mapping `key`; tensor-parallel parts lack names, or no rule fits.
        NotImplementedError: torch's tar layout, tensors that are not strided.
        OSError: the system, or a server, does not let a file be read; with its errno.

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
        fits: how many of the names that it is given a model has, which chooses among the mappings
            in a file of torch.save.
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
