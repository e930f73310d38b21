"""The header of a safetensors file: which tensor's bytes lie where.

A file is the length of the header (8 bytes, little endian), the header (JSON), and the tensors'
bytes, one after the other (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# In the order in which the format's own library lays tensors out, from the last to the first, so
# that the same tensors give the same file. Wider elements come first, so all are aligned.
_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.float4_e2m1fn_x2: "F4",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
# Numbers in an element, where the format counts numbers and PyTorch counts bytes.
_PACKED = {torch.float4_e2m1fn_x2: 2}
_RANKS = {dtype: rank for rank, dtype in enumerate(_NAMES)}

METADATA_KEY = "__metadata__"
# What readers that serve several frameworks ask for.
PYTORCH = {"format": "pt"}
# Readers of the format refuse longer headers.
_LONGEST = 100_000_000


@dataclass(frozen=True)
class Layout:
    """Where everything in one file lies.

    Attributes:
        prefix: the bytes before the first tensor.
        offsets: for each name the place in the file of its first byte.
        nbytes: size of the file.
    """

    prefix: bytes
    offsets: dict[str, int]
    nbytes: int


def obstacle(tensor: torch.Tensor) -> str | None:
    """Why the format cannot hold a tensor of this dtype and shape; None where it can."""
    if tensor.dtype not in _NAMES:
        return f"the format has no {tensor.dtype}"
    if tensor.dtype in _PACKED and tensor.dim() == 0:
        return f"the format has no scalars of {tensor.dtype}"
    return None


def lay_out_file(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Layout:
    """Lays tensors out in a file; looks at their dtypes and shapes only.

    Args:
        tensors: by name; none has an `obstacle`.
        metadata: what the header says besides; by default that PyTorch's tensors are in the file.

    Raises:
        ValueError: the header would be longer than readers accept.
    """
    order = sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))
    header: dict[str, object] = {METADATA_KEY: dict(metadata or PYTORCH)}
    begins: dict[str, int] = {}
    position = 0
    for name in order:
        tensor = tensors[name]
        begins[name] = position
        position += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": _shape(tensor),
            "data_offsets": [begins[name], position],
        }
    document = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    document += b" " * (-len(document) % 8)
    if len(document) > _LONGEST:
        raise ValueError(
            f"save: the header of a file with {len(tensors)} tensors takes {len(document)} bytes, "
            f"readers of safetensors accept {_LONGEST}. Save to a folder with a smaller "
            "max_shard_size, so that each file has fewer tensors."
        )
    prefix = len(document).to_bytes(8, "little") + document
    offsets = {name: len(prefix) + begin for name, begin in begins.items()}
    return Layout(prefix, offsets, len(prefix) + position)


def _shape(tensor: torch.Tensor) -> list[int]:
    shape = list(tensor.shape)
    if tensor.dtype in _PACKED:
        shape[-1] *= _PACKED[tensor.dtype]
    return shape
