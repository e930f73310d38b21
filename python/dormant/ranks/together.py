"""Ranks that hold the parts of one model: what they tell each other while each makes its own.

`load` and `materialize` of a model whose parameters are divided are called by all ranks that have
parts of it. They need each other for little, but each has to know whether the others succeeded, or
one would keep a model of which there are no other parts, or wait for a rank that gave up.

Every exchange carries what went wrong since the last one, so whatever a rank does between two
exchanges may fail, and all ranks learn of it in the next.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import unrecorded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# The first that an error is an instance of is what the other ranks raise.
_KINDS = (KeyError, NotImplementedError, ValueError, TypeError, OSError, MemoryError, RuntimeError)

# What a rank says of its error: which kind, the message, errno.
_Failure = tuple[int, str, "int | None"]


class Together:
    """The ranks that work on the parts of some modules; a context for that work.

    An exception that leaves the context is told to the other ranks, whose next `exchange` raises
    it. In a process that works alone `exchange` gives back what it is given.

    Args:
        operation: "load" or "materialize", for messages.
        roots: modules, and anything else, which is not looked at.
    """

    def __init__(self, operation: str, roots: Iterable[object]) -> None:
        self._operation = operation
        self._groups = _groups_of(roots)
        self._ended = not self._groups
        self.rank = torch.distributed.get_rank() if self._groups else 0

    @property
    def is_alone(self) -> bool:
        """Whether no other rank takes part."""
        return not self._groups

    def exchange(self, payload: Any = None) -> dict[int, Any]:
        """What every rank has to say, by rank in the default group.

        Raises:
            KeyError, ValueError, OSError, MemoryError, RuntimeError, ...: another rank failed, with
                its message; or it is gone (RuntimeError).
        """
        if self.is_alone:
            return {self.rank: payload}
        answers = self._send(payload, None)
        failures = {rank: failure for rank, (_, failure) in answers.items() if failure is not None}
        if failures:
            self._ended = True
            raise _error_of(self._operation, *min(failures.items()))
        return {rank: said for rank, (said, _) in sorted(answers.items())}

    def __enter__(self) -> Together:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not self._ended:
            self._ended = True
            with contextlib.suppress(RuntimeError):  # nobody is left who could be told
                self._send(None, _failure_of(error))

    def _send(self, payload: Any, failure: _Failure | None) -> dict[int, tuple[Any, Any]]:
        known = {self.rank: (payload, failure)}
        try:
            with unrecorded():
                # Over one dimension of the mesh after the other, until all know all.
                for group in self._groups:
                    gathered: list[Any] = [None] * group.size()
                    torch.distributed.all_gather_object(gathered, known, group=group)
                    for each in gathered:
                        known.update(each)
        except RuntimeError as error:
            raise self.gone(error) from error
        return known

    def gone(self, error: RuntimeError) -> RuntimeError:
        """What to raise where the ranks can't talk any more because of `error`."""
        self._ended = True
        return RuntimeError(
            f"{self._operation}: a rank of the process group is gone, or did not answer in time "
            f"({error}). {self._operation} changed nothing on this rank. Next: look for the first "
            "error of the other ranks."
        )


def _failure_of(error: BaseException) -> _Failure:
    for number, kind in enumerate(_KINDS):
        if isinstance(error, kind):
            text = error.args[0] if kind is KeyError and error.args else error
            if isinstance(error, OSError) and error.errno is not None:
                return number, str(error.strerror), error.errno
            return number, str(text), None
    return _KINDS.index(RuntimeError), f"{type(error).__name__}: {error}", None


def _error_of(operation: str, rank: int, failure: _Failure) -> Exception:
    number, text, errno = failure
    kind = _KINDS[number]
    message = f"{text} (This was on rank {rank}; {operation} changed nothing on any rank.)"
    return OSError(errno, message) if errno is not None else kind(message)


def _groups_of(roots: Iterable[object]) -> list[ProcessGroup]:
    """Those that parameters are divided in, each once; none where one can't send CPU tensors."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return []
    groups: list[ProcessGroup] = []
    for root in roots:
        for group in _all_groups_of(root) if isinstance(root, torch.nn.Module) else ():
            if group.size() > 1 and group not in groups:
                groups.append(group)
    return groups if all(map(sends_from_the_cpu, groups)) else []


def _all_groups_of(root: torch.nn.Module) -> Iterator[ProcessGroup]:
    for parameter in root.parameters():
        if is_dtensor(parameter):
            mesh = parameter.device_mesh
            if mesh.get_coordinate() is not None:
                yield from mesh.get_all_groups()
    for module in root.modules():
        handle = fsdp1_handle(module)
        if handle is not None:
            yield handle.process_group


def fsdp1_handle(module: torch.nn.Module) -> Any:
    """What FSDP1 keeps the flat parameter of a module in; None of other modules."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FullyShardedDataParallel):
        return None
    handle = getattr(module, "_handle", None)
    return handle if handle is not None and handle.uses_sharded_strategy else None


def sends_from_the_cpu(group: ProcessGroup) -> bool:
    """Whether ranks of `group` can send each other what is in memory."""
    backends = torch.distributed.get_backend_config(group).split(",")
    return any(backend in ("cpu:gloo", "cpu:mpi", "cpu:ucc") for backend in backends)
