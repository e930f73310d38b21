"""Checks that all ranks have recorded the same model, before each materializes its part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

import torch

from dormant._extension import _C
from dormant.ranks.together import Together, fsdp1_handle
from dormant.tensors.division import divided_parameters
from dormant.tensors.shards import part_of
from dormant.text.printable import printable


def check_same_recording(modules: Iterable[torch.nn.Module], together: Together) -> None:
    """Compares what the ranks recorded for the tensors that they have parts of.

    Raises:
        ValueError: there is a difference; it is raised on every rank and names the first such
            tensor. Or not all ranks have the same `share_reads`.
        RuntimeError, OSError, MemoryError, ...: another rank failed.
    """
    if together.is_alone:
        return
    digests = {name: _C.digest(part) for name, part in _lazy_parts(modules)}
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    answers = together.exchange([together.shares_reads, digest])
    if all(answer == answers[together.rank] for answer in answers.values()):
        return
    everyone = together.exchange([together.shares_reads, digests])
    first: dict[str, tuple[int, int]] = {}
    for rank, (shares, theirs) in everyone.items():
        if shares != together.shares_reads:
            raise ValueError(
                f"{together.operation}: share_reads is {shares} on rank {rank} and "
                f"{together.shares_reads} on rank {together.rank}. Next: pass the same on all "
                "ranks."
            )
        for name, digest in theirs.items():
            if digest is None:  # it has no elements, or all were overwritten
                continue
            other, expected = first.setdefault(name, (rank, digest))
            if digest != expected:
                raise ValueError(
                    f"{together.operation}: ranks {other} and {rank} have recorded different "
                    f"values for {printable(name)}, so their parts do not belong together. Next: "
                    "set the same seed on all ranks before dormant.lazy_init, and draw no random "
                    "numbers in code that depends on the rank."
                )


def _lazy_parts(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    for module in modules:
        for name, held, _ in divided_parameters(module):
            if part_of(held) is None and _C.is_lazy(held):
                yield name, held
        for name, parameter in module.named_parameters():
            part = part_of(parameter)
            if part is not None and _C.is_lazy(part):
                yield name, part
        for name, child in module.named_modules():
            handle = fsdp1_handle(child)
            if handle is not None and _C.is_lazy(handle.flat_param):
                yield f"{name}.flat_param", handle.flat_param
