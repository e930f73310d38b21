"""The header of a safetensors file, which gives the positions of the tensors' bytes.

A file is the length of the header (8 bytes, little endian), the header (JSON), and the tensors'
bytes, one after the other (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dormant._extension import _C

# The format's dtypes, and how many of its elements one element of PyTorch is.
_DTYPES = _C.safetensors_dtypes()

METADATA_KEY = "__metadata__"
# The metadata that readers for several frameworks need.
PYTORCH = {"format": "pt"}


@dataclass(frozen=True)
class Layout:
    """The positions of everything in one file.

    Attributes:
        prefix: the bytes before the first tensor.
        offsets: the position of the first byte of each name.
        nbytes: size of the file.
    """

    prefix: bytes
    offsets: dict[str, int]
    nbytes: int


def obstacle(tensor: torch.Tensor) -> str | None:
    """Why the format cannot store a tensor of this dtype and shape; None if it can."""
    if tensor.dtype not in _DTYPES:
        return f"the format has no {tensor.dtype}"
    if _DTYPES[tensor.dtype] > 1 and tensor.dim() == 0:
        return f"the format has no scalars of {tensor.dtype}"
    return None


def lay_out_file(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Layout:
    """Lays out tensors in a file; uses only their dtypes and shapes.

    Args:
        tensors: the tensors by name; none has an `obstacle`.
        metadata: the metadata in the header; by default, it says that the tensors are of PyTorch.

    Raises:
        ValueError: the header would be longer than readers accept, or a name is not Unicode.
    """
    names = list(tensors)
    prefix, offsets, nbytes = _C.lay_out_safetensors(
        [
            # Encoded here: text that is not Unicode is Python's error.
            (name.encode(), tensor.dtype, tuple(tensor.shape))
            for name, tensor in tensors.items()
        ],
        [(key.encode(), value.encode()) for key, value in (metadata or PYTORCH).items()],
    )
    return Layout(prefix, dict(zip(names, offsets, strict=True)), nbytes)
