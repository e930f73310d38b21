"""Streams data to files whose layout is known before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dormant._extension import _C
from dormant.publication.publication import Publication, write_bytes
from dormant.reporting.progress import Callback, following

# Takes an open file (descriptor, path for messages); calls back with the number of bytes read.
Seal = Callable[[int, Path, Callable[[int], None]], None]


@dataclass(frozen=True)
class FilePlan:
    """The planned contents of one file.

    Attributes:
        texts: bytes, each with its position in the file.
        tensors: tensors, each with its position in the file; lazy ones stay lazy.
        nbytes: size of the file, without the part that `seal` writes.
        seal: finishes a file whose tensors are written; it reads all of them again.
    """

    texts: list[tuple[int, bytes]]
    tensors: list[tuple[torch.Tensor, int]]
    nbytes: int
    seal: Seal | None = None

    @property
    def tensor_bytes(self) -> int:
        """The bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor, _ in self.tensors)


def write_files(
    publication: Publication,
    plans: Mapping[str, FilePlan],
    *,
    title: str = "save",
    memory_budget: int | None = None,
    progress: bool | Callback | None = None,
    sample: Callable[[], None] = lambda: None,
) -> None:
    """Creates and fills files; `publication` gives them their names later.

    Args:
        publication: the publication of their folder.
        plans: the plans by name of the file.
        title: the title of the progress bar.
        memory_budget: as for `dormant.save`.
        progress: as for `dormant.save`, in bytes of tensors.
        sample: a function that is called many times during the work.

    Raises:
        OSError: the system refused to write, as on a full device; has its errno.
        ValueError: `memory_budget` is too small.
    """
    total = sum(plan.tensor_bytes for plan in plans.values())
    publication.check_room(sum(plan.nbytes for plan in plans.values()))
    before = 0
    with following(progress, title) as tell:

        def on_step(done: int) -> None:
            sample()
            if tell is not None:
                tell(before + done, total)

        for name, plan in plans.items():
            with publication.create(name) as descriptor:
                _fill(descriptor, publication.folder / name, plan, memory_budget, on_step)
            before += plan.tensor_bytes


def _fill(
    descriptor: int,
    path: Path,
    plan: FilePlan,
    memory_budget: int | None,
    on_step: Callable[[int], None],
) -> None:
    # If bytes are read again, half of their progress counts when they are written.
    rounds = 1 if plan.seal is None else 2
    for offset, text in plan.texts:
        write_bytes(descriptor, text, offset, path)
    _C.write(
        plan.tensors,
        descriptor,
        str(path),
        lambda done, _: on_step(done // rounds),
        memory_budget,
    )
    written = os.fstat(descriptor).st_size
    if written != plan.nbytes:
        raise OSError(
            f"save: {path} has {written} bytes after writing, expected {plan.nbytes}. Another "
            "process changed it; save again."
        )
    if plan.seal is not None:
        read = 0

        def on_read(count: int) -> None:
            nonlocal read
            read += count
            on_step(min((plan.tensor_bytes + read) // rounds, plan.tensor_bytes))

        plan.seal(descriptor, path, on_read)
