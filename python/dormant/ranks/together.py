"""Ranks that hold the parts of one model, and what they tell each other while each does its part.

`load` and `materialize` of a model with sharded parameters must be called by all ranks that have
parts of it. Each rank must know whether the others succeeded. Otherwise it could keep a model whose
other parts do not exist, or wait for a rank that gave up.

Every exchange contains what went wrong since the last one. Whatever a rank does between two
exchanges may therefore fail, and all ranks learn of it in the next exchange.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dormant.tensors.division import divided_parameters
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import unrecorded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

# The other ranks raise the first kind that an error is an instance of.
_KINDS = (KeyError, NotImplementedError, ValueError, TypeError, OSError, MemoryError, RuntimeError)

# Number of bytes with which a rank reports its result, and what it says if that fits.
_ROW = 2048

# A rank that waits checks after this many seconds whether another rank is known to be gone.
_LOOK = 0.5


class Together:
    """The ranks that work on the parts of some modules; a context for that work.

    If an exception leaves the context, the other ranks are told, and their next `exchange` raises
    it. In a process that works alone, `exchange` returns what it is given.

    Args:
        operation: "load" or "materialize", for messages.
        roots: modules; other objects are ignored.
        shares_reads: whether all ranks of the default group take part if no parameter is sharded.

    Attributes:
        operation, shares_reads: as given.
        groups: the process groups through which the ranks reach each other.
        rank: of this process in the default group.
        ranks: the ranks that took part in the last exchange.
    """

    def __init__(
        self, operation: str, roots: Iterable[object], *, shares_reads: bool = False
    ) -> None:
        self.operation = operation
        self.shares_reads = shares_reads
        self.groups = _groups_of(roots, or_all=shares_reads)
        self._ended = not self.groups
        self.rank, world = 0, 1
        if _is_one_of_several():
            self.rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.ranks = [self.rank]
        self._is_steady = False
        self._interrupt: BaseException | None = None
        # Allocated outside of torch's allocator, so that exhausted memory can still be reported.
        self._rows = bytearray(world * _ROW)
        self._table = torch.frombuffer(self._rows, dtype=torch.uint8)

    @property
    def is_alone(self) -> bool:
        """Whether no other rank takes part."""
        return not self.groups

    def exchange(self, said: Any = None) -> dict[int, Any]:
        """What every rank says, by rank in the default group.

        Args:
            said: what JSON can contain; None says nothing.

        Raises:
            KeyError, ValueError, OSError, MemoryError, RuntimeError, ...: another rank failed, with
                its message; or it is gone (RuntimeError).
        """
        if self.is_alone:
            return {self.rank: said}
        self._ended = False
        with self.steady():
            return self._exchange(said)

    def conclude(self) -> None:
        """The last exchange: after it, the other ranks keep their results.

        This rank keeps its results, too: an interrupt while it waits is raised only when the
        context ends.

        Raises:
            KeyError, ...: another rank failed.
        """
        if not self.is_alone:
            self._is_steady = True
            self._exchange(None)
            self._ended = True

    def _exchange(self, said: Any) -> dict[int, Any]:
        text = b"" if said is None else json.dumps(said).encode()
        answers = self._agree(text)
        found = {rank: json.loads(short) if short else None for rank, (_, short) in answers.items()}
        sizes = {rank: size for rank, (size, short) in answers.items() if size and not short}
        if not sizes:
            return found
        try:
            with unrecorded():
                together = torch.zeros(sum(sizes.values()), dtype=torch.uint8, device="cpu")
        except BaseException as error:
            self._fail(error)
            raise
        self._agree(b"")  # all ranks have the memory for it
        starts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0)))  # noqa: B905
        begin = starts.get(self.rank)
        if begin is not None:
            together[begin : begin + len(text)] = torch.frombuffer(
                bytearray(text), dtype=torch.uint8
            )
        self._spread(together)
        whole = bytes(together.tolist())
        for rank, size in sizes.items():
            found[rank] = json.loads(whole[starts[rank] : starts[rank] + size])
        return found

    def wait(self, work: Work, group: ProcessGroup) -> None:
        """Waits until `work` in `group` is done.

        Raises:
            RuntimeError: a rank of the group is gone.
        """
        try:
            while not self._has_ended(work, group):
                pass
        except RuntimeError as error:
            self._ended = True
            # Ranks that share other groups with this rank would wait for it there.
            with contextlib.suppress(RuntimeError):
                for each in self.groups:
                    _store().set(_key_of(each), "")
            raise RuntimeError(
                f"{self.operation}: a rank of the process group is gone, or did not answer in "
                f"time ({error}). {self.operation} changed nothing on this rank. Next: look for "
                "the first error of the other ranks, and start all of them again."
            ) from error

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """While open, an interrupt of a wait is raised at the end; a second one is raised at once.

        This rank therefore continues to where the others expect to be told of it.
        """
        if self._is_steady:
            yield
            return
        self._is_steady = True
        try:
            yield
        finally:
            self._is_steady = False
            interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt

    def _has_ended(self, work: Work, group: ProcessGroup) -> bool:
        """Waits for `work`; False if something else happened first."""
        try:
            _wait(work, group)
        except RuntimeError:
            raise
        except BaseException as interrupt:
            if not self._is_steady or self._interrupt is not None:
                raise
            self._interrupt = interrupt
            return False
        return True

    def __enter__(self) -> Together:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not self._ended:
            self._fail(error)
        if error is None and self._interrupt is not None:
            raise self._interrupt

    def _fail(self, error: BaseException) -> None:
        """Tells the other ranks, in the exchange that they expect next."""
        self._ended = True
        with contextlib.suppress(RuntimeError):  # no rank is left to tell
            self._tell(b"", _failure_of(error))

    def _agree(self, text: bytes) -> dict[int, tuple[int, bytes]]:
        """The lengths of the texts of all ranks, and the texts that are short enough.

        Raises:
            KeyError, ...: a rank has failed.
        """
        answers = self._tell(text, None)
        self.ranks = list(answers)
        for rank, (_, failure, _) in answers.items():
            if failure is not None:
                self._ended = True
                raise _error_of(self.operation, rank, failure)
        return {rank: (size, short) for rank, (size, _, short) in answers.items()}

    def _tell(
        self, text: bytes, failure: _Failure | None
    ) -> dict[int, tuple[int, _Failure | None, bytes]]:
        """What all ranks report; allocates nothing that torch needs memory for."""
        row = json.dumps([len(text), failure]).encode()
        assert len(row) <= _ROW
        if len(row) + 1 + len(text) <= _ROW:
            row += b"\n" + text
        self._rows[:] = bytes(len(self._rows))
        begin = self.rank * _ROW
        self._rows[begin : begin + len(row)] = row
        self._spread(self._table)
        found = {}
        for rank in range(len(self._rows) // _ROW):
            told = bytes(self._rows[rank * _ROW : (rank + 1) * _ROW]).rstrip(b"\0")
            if told:
                head, _, short = told.partition(b"\n")
                size, failed = json.loads(head)
                found[rank] = (size, None if failed is None else _Failure(*failed), short)
        return found

    def _spread(self, bytes_of_all: torch.Tensor) -> None:
        """Combines bytes of which each rank has set its own and no others; the rest is 0."""
        # Along one dimension of the mesh after the other, until all ranks have everything.
        for group in self.groups:
            work = torch.distributed.all_reduce(
                bytes_of_all, torch.distributed.ReduceOp.MAX, group=group, async_op=True
            )
            self.wait(work, group)


class _Failure(NamedTuple):
    """What a rank reports about its error."""

    kind: int  # in _KINDS
    text: str
    errno: int | None


def _failure_of(error: BaseException) -> _Failure:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    for number, kind in enumerate(_KINDS):
        if isinstance(error, kind):
            if isinstance(error, OSError) and error.errno is not None:
                return _Failure(number, _short(str(error.strerror)), error.errno)
            return _Failure(number, _short(text), None)
    number = _KINDS.index(RuntimeError)
    return _Failure(number, _short(f"{type(error).__name__}: {text}"), None)


def _short(text: str) -> str:
    """The beginning of the text that fits into a row as JSON."""
    while len(json.dumps(text)) > _ROW - 64:
        text = text[: len(text) * 3 // 4] + "..."
    return text


def _error_of(operation: str, rank: int, failure: _Failure) -> Exception:
    message = f"{failure.text} (This was on rank {rank}; {operation} changed nothing on any rank.)"
    if failure.errno is not None:
        return OSError(failure.errno, message)
    error: Exception = _KINDS[failure.kind](message)
    return error


def _wait(work: Work, group: ProcessGroup) -> None:
    """Notices a rank that is gone, even if it is not a neighbor whose socket closes."""
    pause, looked = 1e-5, time.monotonic()
    while not work.is_completed():
        time.sleep(pause)
        pause = min(2 * pause, 5e-3)
        if time.monotonic() > looked + _LOOK:
            looked = time.monotonic()
            if _store().check([_key_of(group)]):
                raise RuntimeError("another rank has noticed it")
    work.wait()


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def _key_of(group: ProcessGroup) -> str:
    """The key that is set if a rank of the group is gone."""
    return f"dormant/gone/{group.group_name}"


def _groups_of(roots: Iterable[object], *, or_all: bool) -> list[ProcessGroup]:
    """The groups that parameters are sharded in, each once; none if one cannot send CPU tensors.

    If no parameter is sharded and there is a module, `or_all` gives the group of all ranks.
    """
    if not _is_one_of_several():
        return []
    modules = [root for root in roots if isinstance(root, torch.nn.Module)]
    found = [group for module in modules for group in _all_groups_of(module)]
    everybody = torch.distributed.group.WORLD
    if modules and not found and or_all and everybody is not None:
        found = [everybody]
    groups: list[ProcessGroup] = []
    for group in found:
        if group.size() > 1 and group not in groups:
            groups.append(group)
    return groups if all(map(sends_from_the_cpu, groups)) else []


def _is_one_of_several() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _all_groups_of(root: torch.nn.Module) -> Iterator[ProcessGroup]:
    for parameter in root.parameters():
        if is_dtensor(parameter):
            mesh = parameter.device_mesh
            if mesh.get_coordinate() is not None:
                yield from mesh.get_all_groups()
    for _, _, division in divided_parameters(root):
        yield division.group
    for module in root.modules():
        handle = fsdp1_handle(module)
        if handle is not None:
            yield handle.process_group


def fsdp1_handle(module: torch.nn.Module) -> Any:
    """The object in which FSDP1 keeps the flat parameter of a module; None for other modules."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FullyShardedDataParallel):
        return None
    handle = getattr(module, "_handle", None)
    return handle if handle is not None and handle.uses_sharded_strategy else None


def sends_from_the_cpu(group: ProcessGroup) -> bool:
    """Whether ranks of `group` can send each other CPU tensors."""
    backends = torch.distributed.get_backend_config(group).split(",")
    return any(backend in ("cpu:gloo", "cpu:mpi", "cpu:ucc") for backend in backends)
