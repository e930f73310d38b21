"""Ranks that hold the parts of one model: what they tell each other while each makes its own.

`load` and `materialize` of a model whose parameters are divided are called by all ranks that have
parts of it. They need each other for little, but each has to know whether the others succeeded, or
one would keep a model of which there are no other parts, or wait for a rank that gave up.

Every exchange carries what went wrong since the last one, so whatever a rank does between two
exchanges may fail, and all ranks learn of it in the next.
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

from dormant.tensors.division import division_of
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import unrecorded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

# The first that an error is an instance of is what the other ranks raise.
_KINDS = (KeyError, NotImplementedError, ValueError, TypeError, OSError, MemoryError, RuntimeError)

# Bytes that a rank has to say how it went.
_ROW = 2048

# Seconds after which a rank that waits looks whether another one is known to be gone.
_LOOK = 0.5


class Together:
    """The ranks that work on the parts of some modules; a context for that work.

    An exception that leaves the context is told to the other ranks, whose next `exchange` raises
    it. In a process that works alone `exchange` gives back what it is given.

    Args:
        operation: "load" or "materialize", for messages.
        roots: modules, and anything else, which is not looked at.
        shares_reads: where no parameter is divided, all ranks of the default group take part.

    Attributes:
        operation, shares_reads: as given.
        groups: the process groups through which the ranks reach each other.
        rank: of this process in the default group.
        ranks: those that took part in the last exchange.
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
        # Outside of torch's allocator: that memory is exhausted can be told without it.
        self._table = torch.frombuffer(bytearray(world * _ROW), dtype=torch.uint8)

    @property
    def is_alone(self) -> bool:
        """Whether no other rank takes part."""
        return not self.groups

    def exchange(self, said: Any = None) -> dict[int, Any]:
        """What every rank has to say, by rank in the default group.

        Args:
            said: what JSON can hold; None says nothing.

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
        """The last exchange: after it the others keep what they have made.

        So does this rank: what interrupts it from here on while it waits is raised when the context
        ends.

        Raises:
            KeyError, ...: another rank failed.
        """
        if not self.is_alone:
            self._is_steady = True
            self._exchange(None)
            self._ended = True

    def _exchange(self, said: Any) -> dict[int, Any]:
        text = b"" if said is None else json.dumps(said).encode()
        sizes = self._agree(len(text))
        if not any(sizes.values()):
            return dict.fromkeys(sizes)
        try:
            with unrecorded():
                together = torch.zeros(sum(sizes.values()), dtype=torch.uint8, device="cpu")
        except BaseException as error:
            self._fail(error)
            raise
        self._agree(0)  # all have the memory for it
        starts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0)))  # noqa: B905
        if text:
            begin = starts[self.rank]
            together[begin : begin + len(text)] = torch.frombuffer(
                bytearray(text), dtype=torch.uint8
            )
        self._spread(together)
        whole = bytes(together.tolist())
        return {
            rank: json.loads(whole[starts[rank] : starts[rank] + size]) if size else None
            for rank, size in sizes.items()
        }

    def wait(self, work: Work, group: ProcessGroup) -> None:
        """Until `work` in `group` is done.

        Raises:
            RuntimeError: a rank of the group is gone.
        """
        try:
            while not self._has_ended(work, group):
                pass
        except RuntimeError as error:
            self._ended = True
            # Whoever has other groups in common with this rank would wait for it there.
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
        """While open, what interrupts waiting is raised at the end; what comes second, at once.

        So this rank goes on to where the others expect to be told of it.
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
        """Waits for `work`; False where something else came first."""
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
        """Tells the other ranks in what they take for this rank's next exchange."""
        self._ended = True
        with contextlib.suppress(RuntimeError):  # nobody is left who could be told
            self._tell(0, _failure_of(error))

    def _agree(self, size: int) -> dict[int, int]:
        """The sizes that all ranks tell.

        Raises:
            KeyError, ...: a rank has failed.
        """
        answers = self._tell(size, None)
        self.ranks = list(answers)
        for rank, (_, failure) in answers.items():
            if failure is not None:
                self._ended = True
                raise _error_of(self.operation, rank, failure)
        return {rank: told for rank, (told, _) in answers.items()}

    def _tell(self, size: int, failure: _Failure | None) -> dict[int, tuple[int, _Failure | None]]:
        """What all ranks tell; allocates nothing that torch has to have memory for."""
        row = json.dumps([size, failure]).encode()
        assert len(row) <= _ROW
        rows = self._table.zero_().view(-1, _ROW)
        rows[self.rank, : len(row)] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
        self._spread(self._table)
        found = {}
        for rank in range(len(rows)):
            told = bytes(rows[rank].tolist()).rstrip(b"\0")
            if told:
                size, failure = json.loads(told)
                found[rank] = (size, None if failure is None else _Failure(*failure))
        return found

    def _spread(self, bytes_of_all: torch.Tensor) -> None:
        """Puts together bytes of which each rank has set its own, and no other; the rest is 0."""
        # Over one dimension of the mesh after the other, until all know all.
        for group in self.groups:
            work = torch.distributed.all_reduce(
                bytes_of_all, torch.distributed.ReduceOp.MAX, group=group, async_op=True
            )
            self.wait(work, group)


class _Failure(NamedTuple):
    """What a rank says of its error."""

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
    """Its beginning that fits a row in JSON."""
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
    """Also where the rank that is gone is no neighbor in the ring, which then closes no socket."""
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
    """Set where a rank of the group is gone."""
    return f"dormant/gone/{group.group_name}"


def _groups_of(roots: Iterable[object], *, or_all: bool) -> list[ProcessGroup]:
    """Those that parameters are divided in, each once; none where one can't send CPU tensors.

    Where none is divided and there is a module: that of all ranks, if so wanted.
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
    for module in root.modules():
        division = division_of(module)
        if division is not None:
            yield division.group
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
