"""Checkpoints of torch.distributed.checkpoint: each rank streams its part, one rank publishes.

`save` imports this when it is used, because importing torch.distributed.checkpoint takes time.

torch's own planner decides what is written where, so a folder equals the result of torch's `save`;
only the writing is ours. The files of all ranks stay in hidden folders until the coordinator gives
them their names, and then `.metadata`, which refers to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import _save_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from dormant._extension import _C
from dormant.publication.publication import Publication, Replacement, made_folder
from dormant.reporting.progress import Callback
from dormant.saving.contents import SavedTensor
from dormant.saving.stream import FilePlan, write_files
from dormant.saving.torch_archive import Archive, lay_out_archive, plan_archives
from dormant.tensors.identity import identity

METADATA = ".metadata"
_DATA = re.compile(r"__\d+_\d+\.distcp")
# A tensor whose elements begin at a multiple of this offset can be mapped.
_ALIGNMENT = 64


def save_distributed(
    state: Mapping[str, Any],
    folder: Path,
    *,
    memory_budget: int | None,
    progress: bool | Callback | None,
    sample: Callable[[], None],
) -> list[SavedTensor]:
    """Writes this rank's part of `state`; all ranks of the default group call it together.

    Args:
        state: values by name, with any nesting of mappings and lists; an object with a `state_dict`
            is replaced by it.
        folder: the folder of the checkpoint.
        memory_budget: as for `dormant.save`.
        progress: as for `dormant.save`, for this rank.
        sample: a function that is called many times during the work.

    Returns:
        The tensors that this rank wrote.

    Raises:
        ValueError, TypeError, NotImplementedError, OSError: as by `dormant.save`, on every rank if
            one rank fails.
        RuntimeError: another rank failed for another reason.
    """
    values = {
        name: value.state_dict() if isinstance(value, Stateful) else value
        for name, value in state.items()
    }
    together = dist.is_available() and dist.is_initialized()
    # All ranks must learn of a failure from here on, or they would wait for each other.
    with contextlib.ExitStack() as stack:
        writer = StreamWriter(folder, stack, memory_budget, progress, sample)
        try:
            _save_state_dict(values, writer, no_dist=not together, planner=DefaultSavePlanner())
        except CheckpointException as error:
            raise _of_this_rank(error, dist.get_rank() if together else 0) from error
    return writer.saved


class StreamWriter(StorageWriter):
    """Writes the items of a plan to one file of this rank.

    Args:
        folder: the folder of the checkpoint; it need not exist.
        stack: ends the publication after all ranks are done.
        memory_budget: as for `dormant.save`.
        progress: as for `dormant.save`.
        sample: a function that is called many times during the work.

    Attributes:
        saved: the tensors that this rank wrote.
    """

    def __init__(
        self,
        folder: Path,
        stack: contextlib.ExitStack,
        memory_budget: int | None = None,
        progress: bool | Callback | None = None,
        sample: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.saved: list[SavedTensor] = []
        self._folder = folder
        self._stack = stack
        self._memory_budget = memory_budget
        self._progress = progress
        self._sample = sample
        self._save_id = str(uuid.uuid4())
        self._publication: Publication | None = None
        self._rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begins a new checkpoint, in the folder `checkpoint_id` if it is given."""
        self._folder = Path(checkpoint_id) if checkpoint_id else self._folder
        self._save_id = str(uuid.uuid4())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path."""
        return "://" not in os.fspath(checkpoint_id)

    def storage_meta(self) -> StorageMeta | None:
        """The metadata of this checkpoint in `.metadata`; its folder may be moved."""
        return StorageMeta(save_id=self._save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Creates the folder."""
        self._rank = int(kwargs.get("rank") or 0)
        self._stack.enter_context(made_folder(self._folder))
        self._publication = self._stack.enter_context(Publication(self._folder))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Returns the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Returns the plans unchanged: files get their names at the end."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes everything that belongs to this rank, without giving it its name."""
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan, planner))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publishes the files of all ranks; the coordinator calls it when all are complete."""
        assert self._publication is not None
        publication = self._publication
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_meta = self.storage_meta()
        sizes: dict[str, int] = {}
        ranks: dict[str, int] = {}
        for rank, written in enumerate(results):
            for result in written:
                path = result.storage_data.relative_path
                sizes[path] = result.size_in_bytes
                ranks[path] = rank
        for path, nbytes in sizes.items():
            publication.adopt(path, self._folder / path, nbytes)

        def order(replacement: Replacement) -> None:
            present = {path.name for path in replacement.folder.iterdir()}
            names = _free_names(ranks, present)
            metadata.storage_data = {
                result.index: dataclasses.replace(
                    result.storage_data, relative_path=names[result.storage_data.relative_path]
                )
                for written in results
                for result in written
            }
            replacement.write(METADATA, pickle.dumps(metadata))
            for path, name in names.items():
                replacement.rename(path, name)
                replacement.place(name)
            replacement.sync()
            # One rename is the step from the earlier checkpoint to this one.
            replacement.place(METADATA)
            replacement.sync()
            for stale in sorted(present - {*names.values()}):
                if _DATA.fullmatch(stale):
                    replacement.remove(stale)

        publication.publish(order)

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        assert self._publication is not None
        content = _Content()
        for item in plan.items:
            content.add(item, planner.resolve_data(item))
        self.saved = content.saved()
        if not plan.items:
            return []
        file = content.plan()
        if self._memory_budget is not None:
            _C.check_write_budget([tensor for tensor, _ in file.tensors], self._memory_budget)
        name = f"__{self._rank}.distcp"  # for messages: its own it gets at the end
        write_files(
            self._publication,
            {name: file},
            memory_budget=self._memory_budget,
            progress=self._progress,
            sample=self._sample,
        )
        path = str(self._publication.path_of(name).relative_to(self._folder))
        return [
            WriteResult(item.index, content.nbytes, _StorageInfo(path, offset, length))
            for item, offset, length in content.places
        ]


class _Content:
    """The contents of one file: archives of torch.save, one for each item, with ties written once.

    Attributes:
        places: (item, offset, length) of each item.
        nbytes: the size of the file.
    """

    def __init__(self) -> None:
        self.places: list[tuple[WriteItem, int, int]] = []
        self.nbytes = 0
        self._archives: list[tuple[int, Archive]] = []
        self._bytes: list[tuple[int, bytes]] = []
        self._known: dict[object, tuple[int, int]] = {}
        self._saved: dict[object, SavedTensor] = {}

    def add(self, item: WriteItem, data: torch.Tensor | io.BytesIO) -> None:
        """Gives an item its place in the file.

        Raises:
            ValueError, NotImplementedError: as by `lay_out_archive`.
        """
        if item.type == WriteItemType.BYTE_IO:
            assert isinstance(data, io.BytesIO)
            document = data.getvalue()
            offset = self._reserve(len(document))
            self._bytes.append((offset, document))
            self.places.append((item, offset, len(document)))
            return
        assert isinstance(data, torch.Tensor)
        tensor, name = data.detach(), item.index.fqn
        key = identity(tensor)
        if key not in self._known:
            try:
                archive = lay_out_archive(tensor, location="cpu")
            except (ValueError, NotImplementedError) as error:
                raise type(error)(f"{error} The tensor is {name!r}.") from error
            offset = self._reserve(archive.nbytes)
            self._archives.append((offset, archive))
            self._known[key] = offset, archive.nbytes
            self._saved[key] = SavedTensor([name], tensor)
        elif name not in self._saved[key].names:
            self._saved[key].names.append(name)
        self.places.append((item, *self._known[key]))

    def saved(self) -> list[SavedTensor]:
        """The distinct tensors."""
        return list(self._saved.values())

    def plan(self) -> FilePlan:
        """How the file is written."""
        file = plan_archives(self._archives) if self._archives else FilePlan([], [], 0)
        # The bytes after the last record may not belong to an archive.
        texts = [*file.texts, *self._bytes]
        ends = [offset + len(text) for offset, text in texts]
        return dataclasses.replace(file, texts=texts, nbytes=max([*ends, file.nbytes]))

    def _reserve(self, nbytes: int) -> int:
        offset = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = offset + nbytes
        return offset


def _free_names(ranks: Mapping[str, int], present: set[str]) -> dict[str, str]:
    """A name for each rank's file, in torch's format, that no file of the folder has."""
    number = 0
    while any(f"__{rank}_{number}.distcp" in present for rank in ranks.values()):
        number += 1
    return {path: f"__{rank}_{number}.distcp" for path, rank in ranks.items()}


def _of_this_rank(error: CheckpointException, own: int) -> BaseException:
    """The error of this rank, or otherwise that of another rank."""
    failures = {rank: failure[0] for rank, failure in error.failures.items()}
    if own in failures:
        return failures[own]
    rank, failure = min(failures.items())
    others = f"rank {rank}" if len(failures) == 1 else f"ranks {sorted(failures)}"
    text = f"save: {others} failed, so nothing was saved: {failure}"
    if isinstance(failure, OSError):
        return OSError(failure.errno, text)
    for kind in (NotImplementedError, ValueError, TypeError, KeyError, MemoryError):
        if isinstance(failure, kind):
            return kind(text)
    return RuntimeError(text)
