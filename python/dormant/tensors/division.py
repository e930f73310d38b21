"""Modules that have parts of parameters as ordinary tensors, and which parts these are."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from dormant.tensors.dtensor import is_dtensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Division:
    """How a parameter is divided evenly among the ranks of a one-dimensional mesh.

    Attributes:
        mesh: the ranks.
        dim: 0 where each has some rows (of a stack of matrices, some matrices), 1 where each has
            some columns.
        rows: those of the whole.
    """

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
        """A DTensor of which this rank has `part`: a matrix where columns are divided.

        Args:
            part: as `cut` returns it, in any shape, or a DTensor that `fully_shard` made of that.

        Raises:
            NotImplementedError: `fully_shard` has cut columns within a row.
        """
        tensor = importlib.import_module("torch.distributed.tensor")
        mesh, placements, own = self.mesh, [tensor.Shard(self.dim)], part
        shape = list(part.shape)
        if is_dtensor(part):
            mesh = self._mesh_with(part.device_mesh)
            placements += part.placements
            own = part._local_tensor
        if self.dim == 1:
            shape = [self.rows, part.numel() // self.rows]
            if own.numel() % shape[1]:
                raise NotImplementedError(
                    f"state_dict: {self.size} ranks have columns of a weight of {self.rows} rows, "
                    "and fully_shard has cut them within a row, which no DTensor describes. It "
                    "needs a number of rows that is a multiple of its number of ranks."
                )
            own = own.reshape(-1, shape[1])
        shape[self.dim] *= self.size
        stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        whole: DTensor = tensor.DTensor.from_local(
            own,
            mesh,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=tuple(stride),
        )
        return whole

    def _mesh_with(self, inner: DeviceMesh) -> DeviceMesh:
        """The ranks of `mesh` in the first dimension and those of `inner` in the others."""
        rank = torch.distributed.get_rank()
        groups = [self.group, *inner.get_all_groups()]
        # `init_device_mesh` numbers ranks like the elements of an array: steps add up.
        table = torch.tensor(rank)
        for group in groups:
            steps = torch.tensor(torch.distributed.get_process_group_ranks(group)) - rank
            table = table.unsqueeze(-1) + steps
        names = (*(self.mesh.mesh_dim_names or ("part",)), *(inner.mesh_dim_names or ()))
        kind: Any = importlib.import_module("torch.distributed.device_mesh").DeviceMesh
        named = names if len(set(names)) == len(groups) else None
        found: DeviceMesh = kind.from_group(
            groups, inner.device_type, mesh=table, mesh_dim_names=named
        )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Division:
        return self


_ATTRIBUTE = "_dormant_divisions"


def divisions_of(module: torch.nn.Module) -> Mapping[str, Division]:
    """Of the parameters of `module` that were divided, by the names that they have in it."""
    found: Mapping[str, Division] = vars(module).get(_ATTRIBUTE, MappingProxyType({}))
    return found


def set_division(module: torch.nn.Module, held_as: str, division: Division) -> None:
    """Marks a parameter as divided.

    Args:
        module: the module that computes with it.
        held_as: the name that the parameter has in `module.named_parameters`.
        division: which part it is.
    """
    vars(module).setdefault(_ATTRIBUTE, {})[held_as] = division


def divided_parameters(
    root: torch.nn.Module,
) -> Iterator[tuple[str, torch.nn.Parameter, Division]]:
    """The name, the part and the division of every divided parameter in `root`."""
    for prefix, module in root.named_modules():
        for name, division in divisions_of(module).items():
            *path, attribute = name.split(".")
            holder: torch.nn.Module | None = module
            for step in path:
                holder = None if holder is None else holder._modules.get(step)
            parameter = None if holder is None else holder._parameters.get(attribute)
            if parameter is not None:
                yield f"{prefix}.{name}" if prefix else name, parameter, division
