"""Tensors that several ranks need: one rank reads each of them and sends it to the others.

What a rank reads, and what it receives, goes directly into the final memory (`_C.Twin`), so sharing
takes no additional memory. The ranks work in ticks. In each tick, every rank reads its next tensors
while those of the previous tick are being sent. Then all ranks tell each other whether they
succeeded, and send. If anything fails on a rank, the others therefore learn of it when they expect
it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from dormant._extension import _C
from dormant.publication.interrupts import uninterrupted
from dormant.ranks.peers import Peers, all_peers, peers_of_part
from dormant.ranks.together import Together, fsdp1_handle
from dormant.reporting.progress import Callback
from dormant.reporting.tally import Tally
from dormant.tensors.division import divided_parameters
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.identity import is_meta, owns_storage
from dormant.tensors.inventory import Inventory
from dormant.tensors.shards import part_of
from dormant.text.printable import printable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

# What a rank reads in a tick, if no tensor is larger: enough for several concurrent requests to a
# server, and for more than one tick with all but small models.
_TICK = 64 << 20

# One broadcast: a rank that forwards it begins when it has received all of it.
_PIECE = 16 << 20

_Ranges: TypeAlias = "tuple[tuple[str, int, int], ...]"

# Gives tensors memory, with values or without ("empty").
Make: TypeAlias = (
    "Callable[[list[torch.Tensor], Literal['values', 'empty'], Callback | None], "
    "list[_C.MaterializedStorage]]"
)


def read_once(
    modules: Sequence[torch.nn.Module],
    inventory: Inventory,
    lazy: Mapping[int, torch.Tensor],
    together: Together,
    make: Make,
    tally: Tally,
) -> list[_C.MaterializedStorage]:
    """Materializes, together with other ranks, what they also need and what is read from files.

    Args:
        modules: the modules that all ranks have.
        inventory: what they hold.
        lazy: by storage, what of it may be materialized.
        together: the ranks; they have exchanged something before.
        make: gives tensors memory.
        tally: counts the bytes of what is read or received.

    Returns:
        What was done to each storage; `way` is "received" if another rank has read it.

    Raises:
        ValueError: the ranks would read different bytes for one tensor.
        RuntimeError, OSError, MemoryError, ...: one of the ranks failed.
    """
    if together.is_alone or not together.shares_reads:
        return []
    units = _units(modules, inventory, lazy, together)
    tasks = list(_tasks(units, together.rank))
    ticks = max((task.tick + len(task.hops) for task in tasks), default=0)
    answers = together.exchange([ticks, {_key(peers): _digest(of) for peers, of in _sets(units)}])
    _check_same_reads(units, {rank: told for rank, (_, told) in answers.items()}, together)
    line = _Line(together)
    done: list[_C.MaterializedStorage] = []
    for tick in range(max((most for most, _ in answers.values()), default=0)):
        now = [task for task in tasks if task.tick == tick]
        done += _make([task for task in now if task.reader == together.rank], make, tally)
        received = [task for task in now if task.reader != together.rank]
        done += _make_room(received, make)
        with together.steady():
            together.exchange()  # all have read theirs, and have the memory for the rest
            arrived = line.receive()
            line.send([task for task in tasks if tick - len(task.hops) < task.tick <= tick], tick)
        _give(arrived, together, tally)
    _give(line.receive(), together, tally)
    return done


@dataclass
class _Unit:
    """Storages that are computed from the same bytes of files, such as a packed weight and scales.

    Attributes:
        tensors: one over each storage.
        names: the name of the first tensor of each.
        ranges: the ranges of files.
        peers: the ranks that need them.
    """

    tensors: list[torch.Tensor]
    names: list[str]
    ranges: _Ranges
    peers: Peers

    @property
    def nbytes(self) -> int:
        return sum(map(_C.storage_nbytes, self.tensors))

    def digests(self) -> dict[str, int]:
        """A digest of the history of each, by name."""
        digests = map(_C.history_digest, self.tensors)
        return dict(zip(self.names, digests, strict=True))


class _Task:
    """One unit on its way from the files to all ranks that need it.

    Attributes:
        unit: what is read.
        reader: the rank that reads it.
        tick: the tick in which it is read.
        hops: where this rank sends or receives it, in that tick and the following ones.
        twins: the bytes of each storage.
    """

    def __init__(self, unit: _Unit, reader: int, tick: int, rank: int) -> None:
        self.unit = unit
        self.reader = reader
        self.tick = tick
        self.hops = unit.peers.hops(reader, rank)
        self.twins: list[_C.Twin] = []

    def take_twins(self) -> list[torch.Tensor]:
        """The bytes of each storage, lazy."""
        self.twins = [_C.Twin(tensor) for tensor in self.unit.tensors]
        return [twin.bytes for twin in self.twins]


class _Line:
    """The tensors that are being sent between the ranks.

    Args:
        together: the ranks.
    """

    def __init__(self, together: Together) -> None:
        self._together = together
        self._works: list[tuple[Work, ProcessGroup]] = []
        self._arriving: list[_Task] = []

    def send(self, tasks: Iterable[_Task], tick: int) -> None:
        """Begins to send and to receive the tasks that have a hop in this tick."""
        pieces = []
        for task in tasks:
            hop = task.hops[tick - task.tick]
            if hop is not None:
                pieces += [(piece, *hop) for twin in task.twins for piece in _pieces(twin.bytes)]
            if tick + 1 == task.tick + len(task.hops):
                self._arriving.append(task)

        def begin() -> None:
            for piece, group, source in pieces:
                work = torch.distributed.broadcast(piece, src=source, group=group, async_op=True)
                assert work is not None
                self._works.append((work, group))

        # The other ranks begin all of them, and expect to be told of an interrupt afterwards.
        uninterrupted(begin)

    def receive(self) -> list[_Task]:
        """Waits for what was sent last; returns the tasks that have made all their hops.

        Raises:
            RuntimeError: a rank is gone.
        """
        for work, group in self._works:
            self._together.wait(work, group)
        self._works.clear()
        arrived, self._arriving = self._arriving, []
        return arrived


def _give(tasks: list[_Task], together: Together, tally: Tally) -> None:
    """Gives the storages what has arrived, and reports progress, which may raise."""
    for task in tasks:
        for twin in task.twins:
            twin.give()
        if task.reader != together.rank:
            tally.part(task.unit.nbytes)(1, 1)


def _make(tasks: list[_Task], make: Make, tally: Tally) -> list[_C.MaterializedStorage]:
    """Reads what this rank has to read."""
    if not tasks:
        return []
    storages = [_C.storage_id(tensor) for task in tasks for tensor in task.unit.tensors]
    tensors = [tensor for task in tasks for tensor in task.take_twins()]
    own = {
        _C.storage_id(tensor): storage for tensor, storage in zip(tensors, storages, strict=True)
    }
    done = make(tensors, "values", tally.part(sum(task.unit.nbytes for task in tasks)))
    for each in done:
        each["storage"] = own[each["storage"]]
    return done


def _make_room(tasks: list[_Task], make: Make) -> list[_C.MaterializedStorage]:
    """Allocates memory for what other ranks send."""
    tensors = [tensor for task in tasks for tensor in task.take_twins()]
    make(tensors, "empty", None)
    return [
        {
            "storage": _C.storage_id(tensor),
            "nbytes": _C.storage_nbytes(tensor),
            "operators": 0,
            "seconds": 0.0,
            "way": "received",
            "read_bytes": 0,
            "initialized_bytes": 0,
            "sources": sorted(_C.sources(tensor)),
        }
        for task in tasks
        for tensor in task.unit.tensors
    ]


def _pieces(whole: torch.Tensor) -> Iterator[torch.Tensor]:
    for begin in range(0, whole.numel(), _PIECE):
        yield whole[begin : begin + _PIECE]


def _units(
    modules: Sequence[torch.nn.Module],
    inventory: Inventory,
    lazy: Mapping[int, torch.Tensor],
    together: Together,
) -> list[_Unit]:
    """What is shared, for each set of ranks, in the order of its bytes in the files."""
    names = {entry.storage: entry.names[0] for entry in reversed(inventory.entries)}
    peers = _peers_by_storage(modules, together)
    found: dict[tuple[tuple[int, ...], _Ranges], _Unit] = {}
    beside: list[tuple[_Ranges, str, torch.Tensor]] = []
    for storage, tensor in lazy.items():
        ranges = _ranges(tensor) if _C.is_lazy(tensor) and _C.storage_nbytes(tensor) else ()
        theirs = peers.get(storage)
        if ranges and storage not in peers:
            beside.append((ranges, names[storage], tensor))
        elif ranges and theirs is not None:
            unit = found.setdefault((theirs.ranks, ranges), _Unit([], [], ranges, theirs))
            unit.tensors.append(tensor)
            unit.names.append(names[storage])
    # The other tensors of a quantized weight are computed together with its parameter.
    for ranges, name, tensor in beside:
        units = [unit for unit in found.values() if unit.ranges == ranges]
        if len(units) == 1:
            units[0].tensors.append(tensor)
            units[0].names.append(name)
    return sorted(found.values(), key=lambda unit: (unit.peers.ranks, unit.ranges))


def _ranges(tensor: torch.Tensor) -> _Ranges:
    """What a lazy tensor reads; files have the same names on all ranks, folders may not."""
    ranges = _C.file_ranges(tensor)
    return tuple((name.rpartition("/")[2], begin, end) for name, begin, end in ranges)


def _peers_by_storage(
    modules: Sequence[torch.nn.Module], together: Together
) -> dict[int, Peers | None]:
    """The ranks that need the same part of each parameter and buffer; None if there are none."""
    found: dict[int, Peers | None] = {}

    def note(tensor: torch.Tensor, peers: Peers | None) -> None:
        if owns_storage(tensor) and not is_meta(tensor):
            # One storage may be in tensors that are sharded differently.
            same = found.setdefault(_C.storage_id(tensor), peers) == peers
            found[_C.storage_id(tensor)] = peers if same else None

    known: dict[object, Peers | None] = {}

    def peers_of(tensor: Any) -> Peers | None:
        kind = (id(tensor.device_mesh), tuple(tensor.placements))
        if kind not in known:
            known[kind] = peers_of_part(tensor)
        return known[kind]

    everyone = all_peers(together)
    for module in modules:
        for _, divided, _ in divided_parameters(module):
            note(divided, None)
        for child in module.modules():
            handle = fsdp1_handle(child)
            if handle is not None:
                note(handle.flat_param, None)
        tensors = (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        )
        for _, tensor in tensors:
            part = part_of(tensor)
            if part is None:
                note(tensor, everyone)
            else:
                note(part, peers_of(tensor) if is_dtensor(tensor) else None)
    return found


def _tasks(units: Sequence[_Unit], rank: int) -> Iterator[_Task]:
    for peers, of in _sets(units):
        schedule = _schedule([unit.nbytes for unit in of], len(peers.ranks))
        for unit, (reader, tick) in zip(of, schedule, strict=True):
            yield _Task(unit, peers.ranks[reader], tick, rank)


def _schedule(sizes: Sequence[int], readers: int) -> list[tuple[int, int]]:
    """The reader of each unit, and its tick: runs of about the same number of bytes, in order.

    All readers have about the same amount to read in each tick, so that none waits long.
    """
    total, in_a_tick = sum(sizes), max(_TICK, *sizes)
    found, begin = [], 0
    firsts: dict[int, int] = {}
    for size in sizes:
        reader = (2 * begin + size) * readers // (2 * total)
        first = firsts.setdefault(reader, begin)
        found.append((reader, (begin - first) // in_a_tick))
        begin += size
    return found


def _sets(units: Sequence[_Unit]) -> list[tuple[Peers, list[_Unit]]]:
    """The units of each set of ranks."""
    found: dict[tuple[int, ...], tuple[Peers, list[_Unit]]] = {}
    for unit in units:
        found.setdefault(unit.peers.ranks, (unit.peers, []))[1].append(unit)
    return list(found.values())


def _key(peers: Peers) -> str:
    return ",".join(map(str, peers.ranks))


def _digest(units: Sequence[_Unit]) -> str:
    text = repr([list(unit.digests().items()) for unit in units])
    return hashlib.sha256(text.encode()).hexdigest()


def _check_same_reads(
    units: Sequence[_Unit], everyone: dict[int, dict[str, str]], together: Together
) -> None:
    """Raises ValueError on all ranks if ranks of one set have recorded different reads."""
    for key in sorted({key for told in everyone.values() for key in told}):
        ranks = [int(rank) for rank in key.split(",")]
        if len({everyone.get(rank, {}).get(key) for rank in ranks}) == 1:
            continue
        of = [unit for peers, of in _sets(units) if _key(peers) == key for unit in of]
        digests = [each for unit in of for each in unit.digests().items()]
        answers = together.exchange(digests)
        first = ranks[0]
        other = next((rank for rank in ranks if answers.get(rank) != answers.get(first)), first)
        ours, theirs = answers.get(first) or [], answers.get(other) or []
        pairs = itertools.zip_longest(ours, theirs, fillvalue=("nothing", 0))
        names = next((a[0], b[0]) for a, b in pairs if a != b)
        raise ValueError(
            f"{together.operation}: share_reads=True, but ranks {first} and {other} would read "
            f"different bytes, first for {' and '.join(map(printable, dict.fromkeys(names)))}. "
            "Next: build the model and load the same files in the same way on all ranks, or leave "
            "share_reads out."
        )
