"""`save`: streams a model to safetensors, lazy tensors without making them real."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dormant._extension import _C
from dormant.materialization.options import check_memory_budget
from dormant.quantization.nested_offsets import compute_offsets
from dormant.reporting.memory import PeakMemory
from dormant.reporting.progress import Callback, ProgressBar, wants_bar
from dormant.reporting.report import Report, TensorReport
from dormant.saving.publication import Publication, write_bytes
from dormant.saving.safetensors_header import METADATA_KEY, Layout, dtype_name, lay_out_file
from dormant.tensors.geometry import identity
from dormant.tensors.inventory import element_bytes, is_wrapper, owns_storage
from dormant.text.byte_count import parse_bytes

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass
class _Entry:
    """A tensor to be written, under the first of its names."""

    names: list[str]
    tensor: torch.Tensor

    @property
    def nbytes(self) -> int:
        return element_bytes(self.tensor)


def save(
    model_or_state: torch.nn.Module | Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    memory_budget: int | str | None = None,
    progress: bool | Callback | None = None,
) -> Report:
    """Writes a model to safetensors files, as eager construction and saving would.

    Lazy tensors are computed piece by piece on their way to the file: they take no memory and are
    lazy afterwards. (One that is quantised, or has a history that can only be replayed whole,
    exists for as long as it is written.) Every tensor is written contiguously; exactly tied ones
    once, under the name that transformers keeps (a module's `_tied_weights_keys`), else the first;
    other views of one storage each as a tensor of its own.

    Files are written under temporary names, synced and then renamed, the index last. Whatever stops
    it leaves no file that looks whole, and an error leaves those of an earlier save as they were.

    Args:
        model_or_state: a module, of which the state dict is saved, or a dict of tensors.
        path: a folder, which is created and gets the file names that transformers uses, in place of
            such files of an earlier save; or the name of a single file, ending in ".safetensors".
        max_shard_size: most bytes of tensors in a file of a folder, a number or text like "5GB" or
            "500MiB"; a larger tensor gets a file of its own. A single file takes everything.
        memory_budget: bytes that saving may take besides tensors that are real, a number or text
            like "2GiB"; None sets no bound. Tensors get smaller tiles, and fewer threads, to fit.
            The process takes some MiB more, for threads and what the C library keeps of freed
            memory.
        progress: True shows a progress bar, False none; a function is called with (done, total)
            bytes; None shows a bar where stderr is a terminal and it takes longer than a second.

    Returns:
        What was written: "initialised" and "checkpoint" are the tensors that were lazy, and still
        are.

    Raises:
        TypeError: `model_or_state` is neither, a name is no string, or `memory_budget` not a size.
        ValueError: a tensor or value that the format cannot hold (sparse, complex128, meta, extra
            state), all of them listed; `max_shard_size` is not a size; or `memory_budget` is too
            small to work in; the message says the minimum, and nothing was written.
        NotImplementedError: a tensor subclass made of other tensors, as DTensor is; or an operator
            that cannot be replayed.
        OSError: the system refused to write, as on a full device; with its errno.
        KeyboardInterrupt: the user interrupted it.

    Example:
        >>> import tempfile, pathlib, torch, dormant
        >>> with dormant.lazy_init():
        ...     layer = torch.nn.Linear(8, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = dormant.save(layer, folder)
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['model.safetensors']
        >>> dormant.is_lazy(layer), report.count("initialised")
        (True, 2)
    """
    started = time.perf_counter()
    limit = _bytes_of(max_shard_size)
    memory_budget = check_memory_budget(memory_budget, "save")
    if isinstance(model_or_state, torch.nn.Module):
        # A function was promised the bytes of the files only.
        shown = False if callable(progress) else progress
        compute_offsets(model_or_state, memory_budget=memory_budget, progress=shown)
    # Subclasses may refuse even to tell their size.
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        entries = _entries(_state_of(model_or_state), _tied_patterns(model_or_state))
        if memory_budget is not None:
            _C.check_write_budget([entry.tensor for entry in entries], memory_budget)
        account = _Account(entries)
        target = Path(path)
        peak = PeakMemory()
        if target.suffix == ".safetensors" and not target.is_dir():
            with Publication(target.parent) as publication:
                _write(publication, {target.name: entries}, None, memory_budget, progress, peak)
                publication.publish()
        else:
            target.mkdir(parents=True, exist_ok=True)
            shards = _shards(entries, limit)
            index = _index(shards) if len(shards) > 1 else None
            with Publication(target) as publication:
                _write(publication, shards, index, memory_budget, progress, peak)
                _replace_earlier(publication, shards, index)
    return account.finish(time.perf_counter() - started, peak.result())


def _bytes_of(size: int | str) -> int:
    if isinstance(size, int) and not isinstance(size, bool):
        count = size
    else:
        count = parse_bytes(str(size)) or 0
    if count <= 0:
        raise ValueError(
            "save: max_shard_size must be a positive number of bytes or text like '5GB' or "
            f"'500MiB', got {size!r}."
        )
    return count


def _state_of(model_or_state: object) -> Mapping[str, torch.Tensor]:
    """The tensors to be saved by name; says what of them cannot be."""
    if isinstance(model_or_state, torch.nn.Module):
        state: Mapping[str, torch.Tensor] = model_or_state.state_dict()
    elif isinstance(model_or_state, Mapping):
        state = model_or_state
    else:
        raise TypeError(
            f"save: expected a module or a dict of tensors, got {type(model_or_state).__name__}."
        )
    refused = []
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(
                f"save: names of tensors must be strings, got {name!r}. Rename it before saving."
            )
        cause = "the format reserves this name" if name == METADATA_KEY else _obstacle(value)
        if cause:
            refused.append(f"{name!r}: {cause}")
        elif is_wrapper(value):
            raise NotImplementedError(
                f"save: {name!r} is a {type(value).__name__}, made of other tensors, which is "
                "not supported. Save this rank's part (tensor.to_local()), or the whole "
                "(tensor.full_tensor())."
            )
    if refused:
        raise ValueError(
            f"save: safetensors cannot hold {len(refused)} of {len(state)} entries: "
            + "; ".join(refused)
            + ". Leave them out of the state dict, or convert them."
        )
    return state


def _obstacle(value: object) -> str | None:
    """Why `value` cannot be saved; None where it can."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}, expected a tensor"
    if torch.nn.parameter.is_lazy(value):
        return "its shape is not known yet; run the module once"
    if value.layout is not torch.strided or value.is_nested:
        return (
            f"its layout is {value.layout}{' (nested)' if value.is_nested else ''}, expected a "
            "strided tensor"
        )
    if dtype_name(value.dtype) is None:
        return f"the format has no {value.dtype}"
    if not is_wrapper(value) and (
        value.device.type == "meta"
        or not owns_storage(value)
        or value.untyped_storage().device.type == "meta"
    ):
        return f"it is on device {str(value.device)!r} and has no values"
    return None


def _tied_patterns(model_or_state: object) -> list[str]:
    """Patterns of names that are not saved where their tensor has another name.

    transformers declares them per module and matches them with `re.search`, below the module's own
    name (`remove_tied_weights_from_state_dict` in transformers/modeling_utils.py).
    """
    if not isinstance(model_or_state, torch.nn.Module):
        return []
    return [
        f"{name}.{pattern}" if name else pattern
        for name, module in model_or_state.named_modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or ()
    ]


def _entries(state: Mapping[str, torch.Tensor], tied: list[str]) -> list[_Entry]:
    groups: dict[object, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(identity(tensor), []).append(name)
    entries = []
    for names in groups.values():
        kept = _kept_name(names, tied)
        others = [name for name in names if name != kept]
        entries.append(_Entry([kept, *others], state[kept]))
    position = {name: place for place, name in enumerate(state)}
    return sorted(entries, key=lambda entry: position[entry.names[0]])


def _kept_name(names: list[str], tied: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    duplicates = [name for name in sorted(names) if any(re.search(p, name) for p in tied)]
    if len(duplicates) == len(names):
        return duplicates[-1]
    return next(name for name in names if name not in duplicates)


def _shards(entries: list[_Entry], limit: int) -> dict[str, list[_Entry]]:
    """Files in the order in which huggingface_hub fills and numbers them."""
    shards: list[list[_Entry]] = []
    current: list[_Entry] = []
    filled = 0
    for entry in entries:
        if entry.nbytes > limit:
            shards.append([entry])
            continue
        if current and filled + entry.nbytes > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(entry)
        filled += entry.nbytes
    if current or not shards:
        shards.append(current)
    if len(shards) == 1:
        return {_WHOLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def _index(shards: dict[str, list[_Entry]]) -> bytes:
    index = {
        "metadata": {"total_size": sum(e.nbytes for shard in shards.values() for e in shard)},
        "weight_map": {e.names[0]: file for file, shard in shards.items() for e in shard},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _write(
    publication: Publication,
    shards: dict[str, list[_Entry]],
    index: bytes | None,
    memory_budget: int | None,
    progress: bool | Callback | None,
    peak: PeakMemory,
) -> None:
    layouts = {
        file: lay_out_file({entry.names[0]: entry.tensor for entry in shard})
        for file, shard in shards.items()
    }
    total = sum(entry.nbytes for shard in shards.values() for entry in shard)
    publication.check_room(sum(layout.nbytes for layout in layouts.values()))
    before = 0
    folder = publication.folder
    with ProgressBar("save") as bar:
        tell = progress if callable(progress) else bar if wants_bar(progress) else None

        def on_step(done: int, _: int) -> None:
            peak.sample()
            if tell is not None:
                tell(before + done, total)

        for file, shard in shards.items():
            with publication.create(file) as descriptor:
                path = folder / file
                _write_file(descriptor, path, shard, layouts[file], memory_budget, on_step)
            before += sum(entry.nbytes for entry in shard)
        if index is not None:
            with publication.create(_INDEX) as descriptor:
                write_bytes(descriptor, index, 0, folder / _INDEX)


def _replace_earlier(
    publication: Publication, shards: Mapping[str, object], index: bytes | None
) -> None:
    """Publishes, and removes the files of an earlier save in the same folder.

    Whoever loads a folder takes the single file before the index, and the index before shards: at
    no time may an old one lead to new files, or be met in their place.
    """
    folder = publication.folder
    old = [
        path for path in folder.iterdir() if path.name not in shards and _SHARD.fullmatch(path.name)
    ]
    if index is None:
        publication.publish(after=[folder / _INDEX, *old])
    else:
        publication.publish(before=[folder / _INDEX, folder / _WHOLE], after=old)


def _write_file(
    descriptor: int,
    path: Path,
    shard: list[_Entry],
    layout: Layout,
    memory_budget: int | None,
    on_step: Callback,
) -> None:
    write_bytes(descriptor, layout.prefix, 0, path)
    tensors = [(entry.tensor, layout.offsets[entry.names[0]]) for entry in shard]
    _C.write(tensors, descriptor, str(path), on_step, memory_budget)
    written = os.fstat(descriptor).st_size
    if written != layout.nbytes:
        raise OSError(
            f"save: {path} has {written} bytes after writing, expected {layout.nbytes}. Another "
            "process changed it meanwhile; save again."
        )


class _Account:
    """What a `Report` needs, taken before anything is written."""

    def __init__(self, entries: list[_Entry]) -> None:
        self._storages: dict[int, int] = {}
        self._operators: dict[int, int] = {}
        self._tensors = [self._describe(entry) for entry in entries]

    def _describe(self, entry: _Entry) -> TensorReport:
        tensor = entry.tensor
        storage = _C.storage_id(tensor)
        self._storages[storage] = _C.storage_nbytes(tensor)
        lazy = _C.is_lazy(tensor)
        if lazy and storage not in self._operators:
            self._operators[storage] = len(_C.operators(tensor))
        files = tuple(sorted(_C.sources(tensor)))
        return TensorReport(
            names=tuple(entry.names),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=entry.nbytes,
            origin="already real" if not lazy else "checkpoint" if files else "initialised",
            operators=self._operators.get(storage, 0),
            storage=storage,
            files=files,
        )

    def finish(self, seconds: float, peak_memory: int | None) -> Report:
        return Report(
            tensors=self._tensors,
            storages=len(self._storages),
            nbytes=sum(self._storages.values()),
            lazy_nbytes=sum(self._storages[storage] for storage in self._operators),
            operators=sum(self._operators.values()),
            seconds=seconds,
            peak_memory=peak_memory,
            value_reads=_C.value_reads(),
        )
