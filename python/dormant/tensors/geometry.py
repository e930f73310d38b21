"""The geometry of a tensor, which says where its elements are in its storage."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch

from dormant._extension import _C


class Geometry(NamedTuple):
    """Everything that is needed, besides a storage, to make a strided tensor.

    Attributes:
        dtype: element type.
        sizes: one for each dimension.
        strides: in elements.
        storage_offset: in elements.
        bits: the bits "conj" and "neg" that are set, as PyTorch serializes them.
    """

    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int
    bits: dict[str, bool]


def geometry_of(tensor: torch.Tensor) -> Geometry:
    """The geometry of a strided tensor."""
    return Geometry(
        tensor.dtype,
        tuple(tensor.shape),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
        cast("dict[str, bool]", torch._utils.get_tensor_metadata(tensor)),  # type: ignore[no-untyped-call]
    )


def lay_out(flat: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A tensor with this geometry over the storage of `flat`, whether or not it has memory."""
    tensor = _C.view_as(flat, *geometry[:4])
    if geometry.bits:
        torch._utils.set_tensor_metadata(tensor, geometry.bits)  # type: ignore[no-untyped-call]
    return tensor
