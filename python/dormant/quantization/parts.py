"""Quantized weights that are sharded: each rank quantizes only its own part.

Packed bytes depend only on their own elements, but every rank keeps all scales, and nested scales
are quantized with the mean of all of them. So that no rank has to compute or read the parts of
other ranks, each rank packs its part, and the ranks send each other the largest magnitudes of their
blocks: 4 bytes for a block, which in a bfloat16 weight has 128.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from dormant._extension import _C
from dormant.quantization.layers import QuantizedWeight, quantized_weights
from dormant.ranks.together import Together, fsdp1_handle, sends_from_the_cpu
from dormant.reporting.progress import Callback
from dormant.reporting.tally import Tally
from dormant.tensors.division import Division, division_of
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.storage import unrecorded

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
        group: the ranks that have the parts of the weight, each once.
    """

    weight: QuantizedWeight
    memory: torch.Tensor
    begin: int
    group: ProcessGroup

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

    def pack(self, realize: Realize, on_step: Callback) -> tuple[torch.Tensor, bool]:
        """Computes the bytes of the part.

        Returns:
            The scales of its blocks, float32, and whether the bytes come from a checkpoint.
        """
        if not self.blocks:
            return torch.empty(0), False
        source, before = self._source()
        packed, scales = self.weight.format.quantized_part(source, self.weight.shape)
        read = realize([packed, scales], on_step)
        with torch.no_grad():
            self.memory.copy_(packed[before : before + self.memory.numel()])
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
    """A part that has some columns of the weight, where blocks end with each row of the part."""

    division: Division

    def in_order(self, scales: torch.Tensor) -> torch.Tensor:
        """The scales of a row come from all ranks."""
        return self.division.in_order(scales)

    def _source(self) -> tuple[torch.Tensor, int]:
        length = self.weight.shape[1] // self.division.size
        begin = self.division.index * length
        return self.weight.source_columns(begin, begin + length), 0


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
        parts = [part for part in parts if part.group.size() == 1]
    owned = {part.weight.name: (part.owned.start, part.owned.stop) for part in parts}
    answers = together.exchange(owned or None)
    everyone = {rank: theirs or {} for rank, theirs in answers.items()}
    for rank, theirs in everyone.items():
        if list(theirs) != list(owned):
            raise ValueError(_different_weights(together, owned, theirs, rank))
    origins: dict[int, Literal["checkpoint", "initialized"]] = {}
    if not parts:
        return origins
    line = _Line(parts, everyone, together)
    together.exchange()  # all ranks have the memory for it

    def make(i: int) -> torch.Tensor:
        part, storage = parts[i], _C.storage_id(parts[i].memory)
        scales, read = part.pack(realize, tally.part(part.memory.numel()))
        if read or storage not in origins:
            origins[storage] = "checkpoint" if read else "initialized"
        # FSDP1 has several in one storage.
        if i + 1 == len(parts) or _C.storage_id(parts[i + 1].memory) != storage:
            realize([part.memory], tally.part(0))
        return scales

    for i in range(len(parts)):
        scales, error = None, None
        try:
            scales = make(i)
        except BaseException as raised:  # the other ranks wait for the scales
            error = raised
        if i > 0:
            error = line.receive(parts[i - 1], realize, tally) or error
        line.send(parts[i], scales if error is None else None)
        if error is not None:
            raise error
    error = line.receive(parts[-1], realize, tally)
    if error is not None:
        raise error
    return origins


class _Line:
    """Sends the scales of the blocks of one weight after the other from all ranks to all ranks.

    Each rank sends from and receives into one buffer, which is allocated before anything is sent:
    a rank that runs out of memory can still say so.

    Args:
        parts: this rank's parts.
        everyone: begin and end of the blocks that each rank owns, by rank and weight.
        together: the ranks.
    """

    def __init__(
        self,
        parts: list[Part],
        everyone: Mapping[int, Mapping[str, tuple[int, int]]],
        together: Together,
    ) -> None:
        self._everyone = everyone
        self._together = together
        longest = max(part.number_of_scales + part.group.size() for part in parts)
        with unrecorded():
            self._memory = torch.empty(longest, dtype=torch.float32, device="cpu")
        self._works: list[tuple[int, Work]] = []

    def send(self, part: Part, scales: torch.Tensor | None) -> None:
        """Begins to send the scales of all blocks to all ranks.

        Args:
            part: the part of this weight.
            scales: the scales of the blocks in this rank's part; None if this rank has failed.
        """
        for rank, owned in self._places(part).items():
            if rank == self._together.rank:
                if scales is None:
                    owned.fill_(_FAILED)
                elif part.owned:
                    owned.copy_(scales[-len(part.owned) :])
                else:
                    owned.zero_()
            work = torch.distributed.broadcast(owned, src=rank, group=part.group, async_op=True)
            assert work is not None
            self._works.append((rank, work))

    def receive(self, part: Part, realize: Realize, tally: Tally) -> BaseException | None:
        """Gives their values to the statistics of the weight that was sent last.

        Returns:
            The error that this rank raised, which no other rank knows.

        Raises:
            RuntimeError, OSError, MemoryError, ...: another rank has failed.
        """
        for _, work in self._works:
            self._together.wait(work, part.group)
        self._works.clear()
        # Do not compare tensors here, because that takes memory.
        if any(owned[0].item() == _FAILED for owned in self._places(part).values()):
            self._together.exchange()
        try:
            self._finish(part, realize, tally)
        except BaseException as error:
            return error
        return None

    def _places(self, part: Part) -> dict[int, torch.Tensor]:
        """Where the scales of each rank go; a rank without any gets the end."""
        places = {}
        for i, rank in enumerate(torch.distributed.get_process_group_ranks(part.group)):
            begin, end = self._everyone[rank][part.weight.name]
            if begin == end:
                begin, end = part.number_of_scales + i, part.number_of_scales + i + 1
            places[rank] = self._memory[begin:end]
        return places

    def _finish(self, part: Part, realize: Realize, tally: Tally) -> None:
        weight = part.weight
        scales = part.in_order(self._memory[: part.number_of_scales])
        statistics = weight.format.statistics(weight.module)
        values = weight.format.statistics_of(scales, weight.threads)
        with torch.no_grad():
            for statistic, value in zip(statistics, values, strict=True):
                statistic.copy_(value)
        realize(statistics, tally.part(0))


def _parts_in(root: torch.nn.Module) -> Iterator[Part]:
    flat = dict(_flat_parts(root))
    for weight in quantized_weights(root):
        held = weight.held
        division = division_of(weight.module)
        if division is not None:
            # If fully_shard has sharded it again, each rank computes it from the whole weight.
            if held is not None and not is_dtensor(held) and not weight.source.is_meta:
                yield from _divided_part(weight, held.data, division)
            continue
        found = _own_rows(held) if is_dtensor(held) else flat.get(weight.place)
        if found is None or weight.source.is_meta or not weight.format.statistics(weight.module):
            continue
        memory, begin, group = found
        if _C.is_lazy(memory) and sends_from_the_cpu(group):
            yield Part(weight, memory.reshape(-1).view(torch.uint8), begin, group)


def _divided_part(
    weight: QuantizedWeight, memory: torch.Tensor, division: Division
) -> Iterator[Part]:
    if _C.is_lazy(memory) and sends_from_the_cpu(division.group):
        part = memory.reshape(-1).view(torch.uint8)
        begin, group = division.index * part.numel(), division.group
        if division.dim == 0:
            yield Part(weight, part, begin, group)
        else:
            yield ColumnPart(weight, part, begin, group, division)


def _own_rows(held: Any) -> tuple[torch.Tensor, int, ProcessGroup] | None:
    """This rank's part of a DTensor of packed bytes, and the offset of its first byte."""
    utils = importlib.import_module("torch.distributed.tensor._utils")
    divided = [i for i, placement in enumerate(held.placements) if not placement.is_replicate()]
    if len(divided) != 1 or not held.placements[divided[0]].is_shard(0):
        return None
    mesh, part = held.device_mesh, held._local_tensor
    _, offset = utils.compute_local_shape_and_global_offset(held.shape, mesh, held.placements)
    row = math.prod(held.shape[1:]) * part.element_size()
    return part, offset[0] * row, mesh.get_group(divided[0])


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
