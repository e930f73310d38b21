"""Quantized weights that are sharded: each rank quantizes only its own part.

Packed bytes depend only on their own elements, but every rank keeps all scales, and nested scales
are quantized with the mean of all of them. So that no rank has to compute or read the parts of
other ranks, each rank packs its part, and the ranks send each other the largest magnitudes of their
blocks: 4 bytes for a block, which in a bfloat16 weight has 128.

With `share_reads=True`, one of the ranks that have the same part (HSDP) packs it and sends it to
the others. Such weights are packed in rounds: in each, every replica packs another weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from dormant._extension import _C
from dormant.quantization.layers import QuantizedWeight, quantized_weights
from dormant.ranks.peers import Peers, peers_of_part
from dormant.ranks.together import Together, fsdp1_handle, sends_from_the_cpu
from dormant.reporting.progress import Callback
from dormant.reporting.tally import Tally
from dormant.tensors.division import Division, divisions_of
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import unrecorded
from dormant.text.printable import printable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

# A rank that has failed sends this instead of scales, which are magnitudes.
_FAILED = -1.0

# Gives lazy tensors memory and values, and reports progress; returns whether it read any.
Realize = Callable[[list[torch.Tensor], Callback], bool]


@dataclass
class Part:
    """This rank's part of the packed bytes of one weight.

    Attributes:
        weight: the whole weight.
        memory: the lazy tensor that the part is written to: uint8 [end - begin].
        begin: offset of the part in the packed bytes.
        group: the ranks that have the parts of the weight, each once; of a weight that was divided
            before it was sharded, the parts of one of these parts.
        division: how the weight was divided before it was sharded.
        peers: the ranks that have the same part.
    """

    weight: QuantizedWeight
    memory: torch.Tensor
    begin: int
    group: ProcessGroup
    division: Division | None = None
    peers: Peers | None = None

    @property
    def blocks(self) -> range:
        """The scales of this part's elements; the first and the last may also belong to others."""
        begin, end, size = self._elements()
        return range(begin // size, -(-end // size)) if end > begin else range(0)

    @property
    def owned(self) -> range:
        """The scales whose first element is in this part."""
        begin, end, size = self._elements()
        return range(-(-begin // size), -(-end // size)) if end > begin else range(0)

    @property
    def number_of_scales(self) -> int:
        """All scales of the whole weight."""
        return -(-self.weight.shape.numel() // self._elements()[2])

    def in_order(self, scales: torch.Tensor) -> torch.Tensor:
        """All scales in the order of the weight's blocks, given those of each rank in turn."""
        return scales

    def pack(
        self, realize: Realize, on_step: Callback, target: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """Computes the bytes of the part.

        Args:
            realize: gives lazy tensors their values.
            on_step: reports progress.
            target: where the bytes go: like `memory`.

        Returns:
            The scales of its blocks, float32, and whether the bytes come from a checkpoint.
        """
        if not self.blocks:
            return torch.empty(0), False
        source, before = self._source()
        packed, scales = self.weight.format.quantized_part(source, self.weight.shape)
        read = realize([packed, scales], on_step)
        with torch.no_grad():
            target.copy_(packed[before : before + target.numel()])
        return scales, read

    def _source(self) -> tuple[torch.Tensor, int]:
        """The elements of the part's blocks, and how many of their bytes precede the part."""
        blocks, size = self.blocks, self._elements()[2]
        source = self.weight.source_elements(blocks.start * size, blocks.stop * size)
        return source, self.begin - blocks.start * size // self.weight.format.codes_per_byte

    def _elements(self) -> tuple[int, int, int]:
        """Begin and end of this part, and the number of elements that share a scale."""
        per_byte = self.weight.format.codes_per_byte
        end = min(per_byte * (self.begin + self.memory.numel()), self.weight.shape.numel())
        size = self.weight.format.elements_per_scale(self.weight.shape)
        return per_byte * self.begin, end, size


@dataclass
class ColumnPart(Part):
    """A part of some columns of the weight, where blocks end with each row of these columns."""

    def in_order(self, scales: torch.Tensor) -> torch.Tensor:
        """The scales of a row come from all ranks."""
        assert self.division is not None
        return self.division.in_order(scales)

    def _source(self) -> tuple[torch.Tensor, int]:
        assert self.division is not None
        blocks, size = self.blocks, self._elements()[2]
        columns = self.weight.shape[1] // self.division.size
        first = self.division.index * columns
        before = self.division.index * (self.weight.shape.numel() // self.division.size)
        source = self.weight.source_columns(first, first + columns)
        own = source[blocks.start * size - before : blocks.stop * size - before]
        return own, self.begin - blocks.start * size // self.weight.format.codes_per_byte


def parts_of(roots: Iterable[object]) -> list[Part]:
    """The parts that are still lazy, in the same order on every rank.

    It leaves out weights that are sharded in an unknown way, or by a group that cannot send CPU
    tensors. They are materialized like other lazy tensors: each rank computes the scales of the
    whole weight.
    """
    return [part for root in roots if isinstance(root, torch.nn.Module) for part in _parts_in(root)]


def quantize_parts(
    parts: list[Part], together: Together, realize: Realize, tally: Tally
) -> dict[int, Literal["checkpoint", "initialized"]]:
    """Computes the parts and the whole of their statistics, together with the other ranks.

    Args:
        parts: the same number as on the other ranks, of the same weights.
        together: these ranks; a rank that works alone only computes weights that it has whole.
        realize: gives lazy tensors their values.
        tally: counts the bytes of the parts.

    Returns:
        The origin of the contents of each storage.

    Raises:
        ValueError: the ranks do not have parts of the same weights.
        RuntimeError, OSError, MemoryError, ...: one of the ranks failed.
    """
    if together.is_alone:
        parts = [part for part in parts if all(group.size() == 1 for group in _groups(part))]
    owned = {part.weight.name: _told(part, together) for part in parts}
    rounds = list(_rounds(parts, owned))
    # Before the exchange: afterwards, all ranks have the memory for it.
    line = _Line(max(map(len, rounds)), parts, together) if parts else None
    answers = together.exchange(owned or None)
    everyone = {rank: theirs or {} for rank, theirs in answers.items()}
    for rank, theirs in everyone.items():
        if list(theirs) != list(owned):
            raise ValueError(_different_weights(together, owned, theirs, rank))
    _check_same_reads(parts, everyone, together)
    origins: dict[int, Literal["checkpoint", "initialized"]] = {}
    if line is None:
        return origins
    line.everyone = everyone
    # FSDP1 has several in one storage.
    last = {_C.storage_id(part.memory): part for part in parts}

    def make(task: _Task) -> None:
        part, storage = task.part, _C.storage_id(task.part.memory)
        on_step = tally.part(part.memory.numel())
        target = part.memory if task.reader is None else task.make_room()
        if task.reader not in (None, together.rank):
            on_step(1, 1)
            origins[storage] = "checkpoint"
            return
        task.scales, read = part.pack(realize, on_step, target)
        if read or storage not in origins:
            origins[storage] = "checkpoint" if read else "initialized"
        if task.reader is None and last[storage] is part:
            realize([part.memory], tally.part(0))

    for tasks in rounds:
        error = None
        try:
            for task in tasks:
                make(task)
        except BaseException as raised:  # the other ranks wait for the scales
            error = raised
        error = line.receive(realize, tally) or error
        if tasks[0].reader is None:
            line.send(tasks, failed=error is not None)
            if error is not None:
                line.pass_on()
        elif error is None:
            with together.steady():
                together.exchange()  # all have packed theirs, and have the memory for the rest
                line.send(tasks)
        if error is not None:
            raise error
    error = line.receive(realize, tally)
    if error is not None:
        raise error
    return origins


# What a rank tells the others of a part: begin and end of the blocks that it owns, which part of a
# divided weight that is in, and a digest of what it would read, if it shares that.
_Told: TypeAlias = "tuple[int, int, int, int | None]"


def _told(part: Part, together: Together) -> _Told:
    shares = together.shares_reads and part.peers is not None
    reads = shares and bool(_C.file_ranges(part.weight.source))
    digest = _C.history_digest(part.weight.source) if reads else None
    index = 0 if part.division is None else part.division.index
    return part.owned.start, part.owned.stop, index, digest


def _groups(part: Part) -> list[ProcessGroup]:
    """Through which ranks reach all other parts of the weight, one after the other."""
    groups = [part.group]
    if part.division is not None and part.division.group != part.group:
        groups.append(part.division.group)
    return groups


def _check_same_reads(
    parts: Iterable[Part], everyone: Mapping[int, Mapping[str, _Told]], together: Together
) -> None:
    """Raises ValueError on all ranks if ranks would read different bytes for one part."""
    for name in [part.weight.name for part in parts] if together.shares_reads else ():
        digests = {rank: told[name][3] for rank, told in everyone.items()}
        first = min(digests)
        other = next((rank for rank in digests if digests[rank] != digests[first]), None)
        if other is not None:
            raise ValueError(
                f"{together.operation}: share_reads=True, but ranks {first} and {other} would read "
                f"different bytes for {printable(name)}. Next: build the model and load the same "
                "files in the same way on all ranks, or leave share_reads out."
            )


@dataclass
class _Task:
    """One part on its way from the history of its weight to all ranks that need it.

    Attributes:
        part: the part.
        reader: the rank that packs it for all that have the same part; None if each does.
        scales: those of the part's blocks, if this rank has packed it.
        twin: the bytes, if they are shared.
    """

    part: Part
    reader: int | None = None
    scales: torch.Tensor | None = None
    twin: _C.Twin | None = None

    def make_room(self) -> torch.Tensor:
        """Allocates memory for what the reader sends; returns the bytes of the part in it."""
        self.twin, memory = _C.Twin(self.part.memory), self.part.memory
        _C.materialize([self.twin.bytes], "empty", None, None, "never")
        begin = memory.storage_offset()
        return self.twin.bytes[begin : begin + memory.numel()]

    def hops(self, rank: int) -> list[tuple[ProcessGroup, int] | None]:
        """How the bytes of the reader reach this rank."""
        if self.reader is None:
            return []
        assert self.part.peers is not None
        return self.part.peers.hops(self.reader, rank)


def _rounds(parts: list[Part], mine: Mapping[str, _Told]) -> Iterator[list[_Task]]:
    """What is packed at the same time: one weight by all ranks, or one by each replica."""
    shared = [part for part in parts if mine[part.weight.name][3] is not None]
    yield from ([_Task(part)] for part in parts if mine[part.weight.name][3] is None)
    total, begin = sum(part.weight.shape.numel() for part in shared), 0
    of_reader: dict[int, list[_Task]] = {}
    for part in shared:
        assert part.peers is not None
        ranks, size = part.peers.ranks, part.weight.shape.numel()
        place = (2 * begin + size) * len(ranks) // (2 * total)  # runs of the same size
        of_reader.setdefault(place, []).append(_Task(part, ranks[place]))
        begin += size
    for tasks in itertools.zip_longest(*of_reader.values()):
        yield [task for task in tasks if task is not None]


class _Line:
    """Sends the scales of the blocks of weights from all ranks to all ranks, and shared parts.

    Each rank sends scales from and receives them into one buffer, which is allocated before
    anything is sent: a rank that runs out of memory can still say so.

    Args:
        slots: the number of weights that are sent at the same time, at most.
        parts: this rank's parts.
        together: the ranks.

    Attributes:
        everyone: what each rank has told of its parts.
    """

    def __init__(self, slots: int, parts: list[Part], together: Together) -> None:
        self.everyone: Mapping[int, Mapping[str, _Told]] = {}
        self._together = together
        longest = max(
            part.number_of_scales + max(group.size() for group in _groups(part)) for part in parts
        )
        with unrecorded():
            self._memory = torch.empty(slots, longest, dtype=torch.float32, device="cpu")
        self._works: list[tuple[Work, ProcessGroup]] = []
        self._tasks: list[_Task] = []

    def send(self, tasks: list[_Task], *, failed: bool = False) -> None:
        """Begins to send the scales of all blocks to all ranks, and what is shared.

        Args:
            tasks: what was packed, or is received.
            failed: whether this rank has failed.
        """
        self._tasks = tasks
        for slot, task in enumerate(tasks):
            owned = self._places(slot, task.part, 0)[self._together.rank]
            if failed:
                owned.fill_(_FAILED)
            elif task.part.owned and task.scales is not None:
                owned.copy_(task.scales[-len(task.part.owned) :])
            else:
                owned.zero_()
        if tasks[0].reader is None:
            self._begin_hop(0)
        else:
            self._begin_to_share(0)

    def pass_on(self) -> None:
        """Sends what has arrived through the first groups to the ranks in the others."""
        shares = [len(task.hops(self._together.rank)) for task in self._tasks]
        for hop in range(1, max(shares, default=0)):
            self._wait()
            self._begin_to_share(hop)
        for hop in range(max(len(_groups(task.part)) for task in self._tasks)):
            if hop > 0 or any(shares):
                self._wait()
                self._begin_hop(hop)

    def receive(self, realize: Realize, tally: Tally) -> BaseException | None:
        """Gives their values to what was sent last.

        Returns:
            The error that this rank raised, which no other rank knows.

        Raises:
            RuntimeError, OSError, MemoryError, ...: another rank has failed.
        """
        if not self._tasks:
            return None
        self.pass_on()
        self._wait()
        tasks, self._tasks = self._tasks, []
        for slot, task in enumerate(tasks):
            if any(self._failures(slot, task.part, len(_groups(task.part)))):
                self._together.exchange()
        try:
            for slot, task in enumerate(tasks):
                if task.twin is not None:
                    task.twin.give()
                self._finish(slot, task.part, realize, tally)
        except BaseException as error:
            return error
        return None

    def _begin_to_share(self, hop: int) -> None:
        for slot, task in enumerate(self._tasks):
            hops = task.hops(self._together.rank)
            step = hops[hop] if hop < len(hops) else None
            if step is not None:
                assert task.twin is not None
                owned = self._places(slot, task.part, 0)[self._together.rank]
                self._broadcast(owned, step[1], step[0])
                self._broadcast(task.twin.bytes, step[1], step[0])

    def _begin_hop(self, hop: int) -> None:
        for slot, task in enumerate(self._tasks):
            groups = _groups(task.part)
            if hop >= len(groups):
                continue
            places = self._places(slot, task.part, hop)
            if any(self._failures(slot, task.part, hop)):
                places[self._together.rank].fill_(_FAILED)
            for rank, place in places.items():
                self._broadcast(place, rank, groups[hop])

    def _broadcast(self, tensor: torch.Tensor, source: int, group: ProcessGroup) -> None:
        work = torch.distributed.broadcast(tensor, src=source, group=group, async_op=True)
        assert work is not None
        self._works.append((work, group))

    def _wait(self) -> None:
        for work, group in self._works:
            self._together.wait(work, group)
        self._works.clear()

    def _failures(self, slot: int, part: Part, hops: int) -> Iterator[bool]:
        """Whether a rank of the first groups has failed."""
        # Do not compare tensors here, because that takes memory.
        for hop in range(hops):
            for place in self._places(slot, part, hop).values():
                yield place[0].item() == _FAILED

    def _places(self, slot: int, part: Part, hop: int) -> dict[int, torch.Tensor]:
        """Where the scales of each rank go; a rank without any gets the end."""
        places = {}
        group, memory = _groups(part)[hop], self._memory[slot]
        for i, rank in enumerate(torch.distributed.get_process_group_ranks(group)):
            begin, end, index, _ = self.everyone[rank][part.weight.name]
            if hop > 0:  # by now, it also has those of the other ranks in its first group
                assert part.division is not None
                length = part.number_of_scales // part.division.size
                begin, end = index * length, (index + 1) * length
            if begin == end:
                begin, end = part.number_of_scales + i, part.number_of_scales + i + 1
            places[rank] = memory[begin:end]
        return places

    def _finish(self, slot: int, part: Part, realize: Realize, tally: Tally) -> None:
        weight = part.weight
        scales = part.in_order(self._memory[slot, : part.number_of_scales])
        statistics = weight.format.statistics(weight.module)
        values = weight.format.statistics_of(scales, weight.threads)
        with torch.no_grad():
            for statistic, value in zip(statistics, values, strict=True):
                statistic.copy_(value)
        realize(statistics, tally.part(0))


def _parts_in(root: torch.nn.Module) -> Iterator[Part]:
    flat = dict(_flat_parts(root))
    for weight in quantized_weights(root):
        held, format_ = weight.held, weight.format
        if weight.source.is_meta or not format_.statistics(weight.module):
            continue
        division = divisions_of(weight.module).get(format_.held_as)
        peers = None
        if is_dtensor(held):
            found = _own_rows(held)
            peers = peers_of_part(held) if division is None else None
        elif division is not None and held is not None:
            found = held.data, 0, division.group
        else:
            found = flat.get(weight.place)
        if found is None:
            continue
        memory, begin, group = found
        if division is not None:
            codes = weight.shape.numel() // format_.codes_per_byte
            begin += division.index * (codes // division.size)
        part = memory.reshape(-1).view(torch.uint8)
        by_columns = division is not None and division.dim == 1
        made = (ColumnPart if by_columns else Part)(weight, part, begin, group, division, peers)
        if _C.is_lazy(memory) and all(map(sends_from_the_cpu, _groups(made))):
            yield made


def _own_rows(held: Any) -> tuple[torch.Tensor, int, ProcessGroup] | None:
    """This rank's part of a DTensor of packed bytes, and the offset of its first byte."""
    divided = [i for i, placement in enumerate(held.placements) if not placement.is_replicate()]
    if len(divided) != 1 or not held.placements[divided[0]].is_shard(0):
        return None
    mesh, part = held.device_mesh, held._local_tensor
    # torch's compute_local_shape_and_global_offset makes a tensor of the indices of all rows.
    rows, dim = held.shape[0], divided[0]
    first = min(rows, mesh.get_local_rank(dim) * -(-rows // mesh.size(dim)))
    row = math.prod(held.shape[1:]) * part.element_size()
    return part, first * row, mesh.get_group(dim)


def _flat_parts(
    root: torch.nn.Module,
) -> Iterator[tuple[tuple[int, str], tuple[torch.Tensor, int, ProcessGroup]]]:
    """FSDP1's part of each parameter that it took, by the parameter's module and name."""
    for module in root.modules():
        handle = fsdp1_handle(module)
        if handle is None:
            continue
        flat = handle.flat_param
        # FSDP1 sets the name when the model is called for the first time.
        own = getattr(flat, "_local_shard", flat.detach())
        for parameter, shard in zip(flat._param_infos, flat._shard_param_infos, strict=True):
            begin = shard.offset_in_shard if shard.in_shard else 0
            count = shard.numel_in_shard if shard.in_shard else 0
            first = shard.intra_param_start_idx if shard.in_shard else 0
            part = own[begin : begin + count]
            where = (id(parameter.module), parameter.param_name)
            yield where, (part, first * part.element_size(), handle.process_group)


def _different_weights(
    together: Together, mine: Iterable[str], theirs: Iterable[str], other: int
) -> str:
    mine, theirs = list(mine), list(theirs)
    differing = sorted(set(mine) ^ set(theirs)) or [
        a for a, b in zip(mine, theirs, strict=True) if a != b
    ]
    return (
        f"{together.operation}: ranks {together.rank} and {other} have parts of different "
        f"quantized weights, first {differing[0]}: {len(mine)} and {len(theirs)} in all. Next: "
        "quantize, load and shard in the same way on every rank."
    )
