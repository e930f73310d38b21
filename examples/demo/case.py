"""One comparison of the demo: the same thing done the ordinary way and with Dormant."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Tell: TypeAlias = Callable[[int, int], None]
"""Called with (done, total), for a progress bar."""

Way: TypeAlias = Callable[[Path, Tell], Any]
"""Called with the folder and a callback; returns the model, or None if it wrote the folder."""

ORDINARY, DORMANT = "ordinary", "dormant"


@dataclass(frozen=True)
class Description:
    """The result, in a form that processes can compare.

    Attributes:
        nbytes: bytes of the weights.
        digests: for every tensor, its shape, dtype and the SHA-256 of its elements.
        outputs: digest of what the model computes; empty if nothing is computed.
        values: the computed values, if they are shown.
    """

    nbytes: int
    digests: dict[str, str]
    outputs: str = ""
    values: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        title: what is done, for the table.
        ordinary: does it without Dormant.
        dormant: does it with Dormant.
        tiny: configuration of a small model of the same kind: the first model pays for imports.
        describe: called with the result of a way and the folder.
        writes: whether the ways write the folder instead of reading it.
    """

    title: str
    ordinary: Way
    dormant: Way
    tiny: dict[str, Any]
    describe: Callable[[Any, Path], Description]
    writes: bool = False

    def way(self, name: str) -> Way:
        """`ordinary` or `dormant`."""
        return self.ordinary if name == ORDINARY else self.dormant


def model_tensors(model: Any) -> dict[str, Any]:
    """Parameters, buffers, and additional tensors of a state dict, such as quantization scales."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **model.state_dict(),
    }


def digest(tensor: Any) -> str:
    """Everything about a tensor that must be equal."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(flat.numpy()).hexdigest()}"


def read_once(model: Any) -> None:
    """Reads a byte of every page, so that mapped bytes are really in memory."""
    import torch

    for tensor in model_tensors(model).values():
        tensor.detach().reshape(-1).view(torch.uint8)[::4096].sum()


def weight_bytes(model: Any) -> int:
    """Bytes of all distinct tensors."""
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in model_tensors(model).values()}
    return sum(distinct.values())
