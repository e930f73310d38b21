"""Ranks that need the same bytes, and how one of them sends what it has to the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dormant.ranks.together import Together, sends_from_the_cpu

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Peers:
    """Ranks that need the same bytes; they form a block of one or more dimensions.

    Attributes:
        ranks: in the default group, in the order of the block, its last dimension fastest.
        groups: the process group of this rank along each dimension.
    """

    ranks: tuple[int, ...]
    groups: tuple[ProcessGroup, ...]

    def hops(self, reader: int, rank: int) -> list[tuple[ProcessGroup, int] | None]:
        """How the data of `reader` reaches all ranks, as far as `rank` takes part.

        It is sent along the first dimension, from there along the second, and so on.

        Returns:
            For each dimension, the group in which `rank` sends or receives, and the rank that sends
            in it; None if `rank` does neither.
        """
        places = list(itertools.product(*(range(group.size()) for group in self.groups)))
        mine, origin = (places[self.ranks.index(each)] for each in (rank, reader))
        found: list[tuple[ProcessGroup, int] | None] = []
        for dim, group in enumerate(self.groups):
            if mine[dim + 1 :] == origin[dim + 1 :]:
                sender = (*mine[:dim], *origin[dim:])
                found.append((group, self.ranks[places.index(sender)]))
            else:
                found.append(None)
        return found


def peers_of_part(tensor: Any) -> Peers | None:
    """The ranks that have the same part of a DTensor as this one; None if no other rank has it."""
    mesh = tensor.device_mesh
    place = mesh.get_coordinate()
    if place is None:
        return None
    dims = [
        dim
        for dim, placement in enumerate(tensor.placements)
        if placement.is_replicate() and mesh.size(dim) > 1
    ]
    if not dims:
        return None
    ranks = tuple(_block(mesh.mesh.tolist(), place, dims))
    return Peers(ranks, tuple(mesh.get_group(dim) for dim in dims))


def _block(table: Any, place: Sequence[int], dims: Sequence[int], dim: int = 0) -> Iterator[int]:
    """The ranks in a mesh that differ from those at `place` only along `dims`."""
    if dim == len(place):
        yield table
    else:
        for row in table if dim in dims else [table[place[dim]]]:
            yield from _block(row, place, dims, dim + 1)


def all_peers(together: Together) -> Peers | None:
    """All ranks that work together; None if no single process group consists of them.

    Args:
        together: its last exchange determined which ranks these are.
    """
    everybody = torch.distributed.group.WORLD
    assert everybody is not None
    for group in (everybody, *together.groups):
        ranks = torch.distributed.get_process_group_ranks(group)
        if sorted(ranks) == sorted(together.ranks) and sends_from_the_cpu(group):
            return Peers(tuple(ranks), (group,))
    return None
