"""Modules that have a part of their weight as an ordinary tensor, and which part that is."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Division:
    """How a matrix is divided evenly among the ranks of a one-dimensional mesh.

    Attributes:
        mesh: the ranks.
        dim: 0 where each has some rows, 1 where each has some columns.
        rows: those of the whole matrix.
    """

    ATTRIBUTE: ClassVar[str] = "_dormant_division"

    mesh: DeviceMesh
    dim: int
    rows: int

    @property
    def size(self) -> int:
        """The number of parts."""
        return self.mesh.size()

    @property
    def index(self) -> int:
        """Which part this rank has."""
        return self.mesh.get_local_rank()

    @property
    def group(self) -> ProcessGroup:
        """The ranks that have the parts."""
        return self.mesh.get_group()

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of what belongs to the matrix in row-major order, a vector.

        Args:
            whole: any shape; a multiple of the parts, and of the rows where columns are divided.
        """
        matrix = whole.reshape(self.size if self.dim == 0 else self.rows, -1)
        length = matrix.shape[self.dim] // self.size
        part = matrix.narrow(self.dim, self.index * length, length)
        return part.clone(memory_format=torch.contiguous_format).view(-1)

    def in_order(self, parts: torch.Tensor) -> torch.Tensor:
        """The vector of which `parts` has the parts one after the other."""
        if self.dim == 0:
            return parts
        return parts.view(self.size, self.rows, -1).transpose(0, 1).reshape(-1)

    def whole(self, part: torch.Tensor) -> DTensor:
        """A DTensor of which this rank has `part`: a matrix where columns are divided."""
        tensor = importlib.import_module("torch.distributed.tensor")
        if self.dim == 1:
            part = part.reshape(self.rows, -1)
        shape = list(part.shape)
        shape[self.dim] *= self.size
        stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        whole: DTensor = tensor.DTensor.from_local(
            part,
            self.mesh,
            [tensor.Shard(self.dim)],
            run_check=False,
            shape=torch.Size(shape),
            stride=tuple(stride),
        )
        return whole

    def __deepcopy__(self, memo: dict[int, Any]) -> Division:
        return self


def division_of(module: torch.nn.Module) -> Division | None:
    """Of a module that was divided; None of another."""
    division: Division | None = vars(module).get(Division.ATTRIBUTE)
    return division
