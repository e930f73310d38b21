"""`save` streams a model to safetensors or a file of torch.save; lazy tensors stay lazy."""

from __future__ import annotations

import importlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from dormant._extension import _C
from dormant.materialization.api import make_report
from dormant.materialization.options import check_memory_budget
from dormant.publication.publication import Publication, Replacement, made_folder
from dormant.quantization.statistics import compute_offsets
from dormant.reporting.memory import PeakMemory
from dormant.reporting.progress import Callback
from dormant.reporting.random_path import random_path
from dormant.reporting.report import Report
from dormant.saving.contents import (
    Contents,
    SavedTensor,
    checked_tensors,
    groups_of_ties,
    state_of,
    tied_patterns,
    without_ties,
)
from dormant.saving.folder import divide, replace_earlier
from dormant.saving.pretrained import pretrained_contents
from dormant.saving.safetensors_header import lay_out_file
from dormant.saving.stream import FilePlan, write_files
from dormant.saving.torch_archive import plan_torch_archive
from dormant.tensors.inventory import Inventory
from dormant.tensors.pretrained import is_pretrained
from dormant.text.byte_count import parse_bytes

Kind = Literal["safetensors", "torch", "folder", "dcp"]
Format = Literal["safetensors", "torch", "dcp"]

SAFETENSORS_ENDING = ".safetensors"
TORCH_ENDINGS = (".pt", ".pth", ".bin")


def save(
    model_or_state: torch.nn.Module | Mapping[str, object],
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    max_shard_size: int | str = "5GB",
    memory_budget: int | str | None = None,
    progress: bool | Callback | None = None,
) -> Report:
    """Writes the same files as eager construction and saving would; lazy tensors stay lazy.

    The path determines the format: a safetensors file if it ends in ".safetensors", a file of
    `torch.save` if it ends in ".pt", ".pth" or ".bin", otherwise a folder of safetensors files.
    Missing folders are created.

    Lazy tensors are computed piece by piece on their way to the file: they take no memory and stay
    lazy. (The statistics of a quantized tensor, and a tensor whose history can only be replayed
    whole, exist while they are written.)

    Safetensors: every tensor is written contiguously. Tied tensors are written once, under the name
    that transformers keeps (a module's `_tied_weights_keys`) or else the first name; other views of
    one storage are written as separate tensors. For a transformers model, a folder gets the files
    that its `save_pretrained` writes with the same `max_shard_size`, including config.json.

    Files of `torch.save`: `torch.load(path, weights_only=True)` gives the same result as for
    `torch.save(model.state_dict(), path)`, including strides and ties. Values that are not tensors
    are also written.

    Folders of torch.distributed.checkpoint (`format="dcp"`): the result equals that of its `save`,
    and its `load` reads it. All ranks of the default process group call this function together.
    Each rank writes its own parts of DTensors; a tensor that several ranks have is written by one
    of them. Mappings and lists may be nested, values need not be tensors, and modules and
    optimizers in a mapping are replaced by their state dicts. Ties of one rank are written once.
    The files get their names when the files of all ranks are complete, `.metadata` last, so if a
    rank fails, the earlier checkpoint is unchanged. All ranks must share the filesystem.

    Files are written under temporary names, synced and then renamed, so a model that reads the
    files that it is saved to continues to read their earlier contents. If saving is stopped, no
    file looks complete, and after an error, the files of an earlier save are unchanged. If the
    process is killed, the folder has either the earlier save or this one, complete; the next save
    removes what was left behind. A symbolic link is replaced, not followed.

    Args:
        model_or_state: a module, whose state dict is saved, or a dict of tensors.
        path: the path of the file or folder. A folder gets the file names that transformers uses,
            which replace such files of an earlier save.
        format: "safetensors", "torch" or "dcp"; None determines it from the path. A format that
            contradicts `path` is an error.
        max_shard_size: the most bytes of tensors in one file of a folder, a number or text like
            "5GB" or "500MiB"; a larger tensor gets its own file. A single file takes everything.
        memory_budget: the memory that saving may use besides tensors that are real, in bytes or as
            text like "2GiB"; None sets no limit. To stay below it, tiles become smaller and fewer
            threads run. The process uses some MiB more, for threads and for freed memory that the C
            library keeps.
        progress: True shows a progress bar, False does not; a function is called with (done, total)
            bytes; None shows a bar if stderr is a terminal and it takes longer than a second.

    Returns:
        What was written, by this rank if there are several. "initialized" and "checkpoint" are the
        tensors that were lazy, and still are.

    Raises:
        TypeError: `model_or_state` is neither; a name is not a string; or `memory_budget` is not a
            size.
        ValueError: the format cannot store a tensor or value (sparse, meta; in safetensors also
            complex128 and extra state), and all of them are listed; the path is empty; transformers
            cannot save how the model is quantized; `max_shard_size` is not a size; `format` is
            unknown or does not match the path; or `memory_budget` is too small: the message gives
            the minimum, and nothing was written.
        NotImplementedError: a tensor subclass is made of other tensors, like DTensor, and the
            format is not "dcp"; or an operator cannot be replayed.
        OSError: the system refused to write, as on a full device or to a read-only file; has its
            errno.
        RuntimeError: another rank failed for another reason, such as an interrupt.
        KeyboardInterrupt: the user interrupted it.

    Example:
        >>> import tempfile, pathlib, torch, dormant
        >>> with dormant.lazy_init():
        ...     layer = torch.nn.Linear(8, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = dormant.save(layer, folder)
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['model.safetensors']
        >>> dormant.is_lazy(layer), report.count("initialized")
        (True, 2)
    """
    started = time.perf_counter()
    limit = _bytes_of(max_shard_size)
    memory_budget = check_memory_budget(memory_budget, "save")
    target, kind = _target(path, format)
    if isinstance(model_or_state, torch.nn.Module):
        # The contract of a progress function covers only the bytes of the files.
        shown = False if callable(progress) else progress
        compute_offsets(model_or_state, memory_budget=memory_budget, progress=shown)
    if kind == "dcp":
        return _save_distributed(model_or_state, target, memory_budget, progress, started)
    # Subclasses may refuse even to return their size.
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        plan = _plan(model_or_state, target, kind, limit)
        if memory_budget is not None:
            outputs = [tensor for file in plan.files.values() for tensor, _ in file.tensors]
            _C.check_write_budget(outputs, memory_budget)
        account = _Account(plan.tensors)
        peak = PeakMemory()
        folder = target if kind == "folder" else target.parent
        with made_folder(folder), Publication(folder) as publication:
            write_files(
                publication,
                plan.files,
                memory_budget=memory_budget,
                progress=progress,
                sample=peak.sample,
            )
            for name, data in plan.small_files.items():
                publication.write(name, data)
            publication.publish(plan.order)
    return account.finish(time.perf_counter() - started, peak.result())


def _save_distributed(
    model_or_state: object,
    folder: Path,
    memory_budget: int | None,
    progress: bool | Callback | None,
    started: float,
) -> Report:
    peak = PeakMemory()
    # Imported when it is used, as torch.distributed.checkpoint is.
    writer = importlib.import_module("dormant.saving.distributed_writer")
    with torch.no_grad():
        saved: list[SavedTensor] = writer.save_distributed(
            state_of(model_or_state),
            folder,
            memory_budget=memory_budget,
            progress=progress,
            sample=peak.sample,
        )
    return _Account(saved).finish(time.perf_counter() - started, peak.result())


def _target(path: str | os.PathLike[str], format: Format | None) -> tuple[Path, Kind]:
    text = os.fspath(path)
    if not text:  # which would stand for the current folder
        raise ValueError("save: got an empty path. Expected that of a file or a folder.")
    target = Path(text)
    kind: Kind = "folder"
    if not target.is_dir() and not text.endswith(os.sep):
        if target.suffix == SAFETENSORS_ENDING:
            kind = "safetensors"
        elif target.suffix in TORCH_ENDINGS:
            kind = "torch"
    fitting: dict[str | None, tuple[Kind, ...]] = {
        None: (kind,),
        "safetensors": ("safetensors", "folder"),
        "torch": ("torch",),
        "dcp": ("folder",),
    }
    if format not in fitting:
        raise ValueError(
            f"save: format must be one of {[each for each in fitting if each]} or None, got "
            f"{format!r}."
        )
    if kind not in fitting[format]:
        is_file = "a file, which ends in '.safetensors', '.pt', '.pth' or '.bin'"
        raise ValueError(
            f"save: format={format!r} does not match {text!r}, which names "
            f"{'a folder' if kind == 'folder' else is_file}. Leave out format, or pass another "
            "path."
        )
    return target, "dcp" if format == "dcp" else kind


@dataclass(frozen=True)
class _Plan:
    """Everything that is written.

    Attributes:
        tensors: the tensors, for the report.
        files: the large files by name.
        small_files: the other files.
        order: how they replace other files; None if there is only one.
    """

    tensors: list[SavedTensor]
    files: Mapping[str, FilePlan]
    small_files: Mapping[str, bytes] = field(default_factory=dict)
    order: Callable[[Replacement], None] | None = None


def _plan(model_or_state: object, target: Path, kind: Kind, limit: int) -> _Plan:
    if kind == "torch":
        return _torch_plan(state_of(model_or_state), target.name)
    contents = _contents(model_or_state, configuration=kind == "folder")
    if kind == "safetensors":
        file = _safetensors_plan(contents.tensors, contents.metadata)
        return _Plan(contents.tensors, {target.name: file})
    division = divide(contents, limit)
    files = {
        name: _safetensors_plan(shard, contents.metadata) for name, shard in division.shards.items()
    }
    order = partial(replace_earlier, division=division)
    return _Plan(contents.tensors, files, contents.files, order)


def _contents(model_or_state: object, *, configuration: bool) -> Contents:
    if is_pretrained(model_or_state):
        return pretrained_contents(model_or_state, configuration=configuration)
    tied = tied_patterns(model_or_state) if isinstance(model_or_state, torch.nn.Module) else []
    return Contents(without_ties(checked_tensors(state_of(model_or_state)), tied))


def _safetensors_plan(tensors: list[SavedTensor], metadata: Mapping[str, str]) -> FilePlan:
    layout = lay_out_file({saved.names[0]: saved.tensor for saved in tensors}, metadata)
    places = [(saved.tensor, layout.offsets[saved.names[0]]) for saved in tensors]
    return FilePlan([(0, layout.prefix)], places, layout.nbytes)


def _torch_plan(state: Mapping[str, object], name: str) -> _Plan:
    # The types that weights_only allows.
    value = state if type(state) in (dict, OrderedDict) else dict(state)
    file = plan_torch_archive(value)
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    saved = [SavedTensor(names, tensors[names[0]]) for names in groups_of_ties(tensors)]
    return _Plan(saved, {name: file})


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


class _Account:
    """The data for a `Report`, collected before anything is written."""

    def __init__(self, tensors: list[SavedTensor]) -> None:
        self._inventory = Inventory()
        self._made: dict[int, _C.MaterializedStorage] = {}
        for entry in tensors:
            described = self._inventory.add(entry.tensor, entry.names)
            if described.lazy and described.storage not in self._made:
                self._made[described.storage] = {
                    "storage": described.storage,
                    "nbytes": described.nbytes,
                    "operators": len(_C.operators(entry.tensor)),
                    "seconds": 0.0,
                    "way": None,
                    "read_bytes": 0,
                    "initialized_bytes": 0,
                    "sources": sorted(_C.sources(entry.tensor)),
                }
        self._random_path = random_path(self._inventory.lazy_storages.values())

    def finish(self, seconds: float, peak_memory: int | None) -> Report:
        return make_report(
            self._inventory,
            self._made,
            values="exact",
            random_path=self._random_path,
            seconds=seconds,
            peak_memory=peak_memory,
            origins={
                storage: "checkpoint" if made["sources"] else "initialized"
                for storage, made in self._made.items()
            },
        )
