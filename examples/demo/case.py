"""One comparison of the demo: the same thing done the ordinary way and with Dormant."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Tell: TypeAlias = Callable[[int, int], None]
"""Takes (done, total), for a progress bar."""

Way: TypeAlias = Callable[[Path, Tell], Any]
"""Takes the folder to read or write, and whom to tell; returns the model, or None if it wrote."""

ORDINARY, DORMANT = "ordinary", "dormant"


@dataclass(frozen=True)
class Description:
    """What came out, in a form that processes can compare.

    Attributes:
        nbytes: bytes of the weights.
        digests: of every tensor its shape, dtype and the SHA-256 of its elements.
        outputs: digest of what the model computes; empty where nothing is computed.
        values: what it computed, where people want to see it.
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
        ordinary: how it is done without Dormant.
        dormant: how with it.
        tiny: configuration of a small model of the same kind: who runs first pays for imports.
        describe: takes what a way returned and the folder.
        writes: whether the ways write the folder, not read it.
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
    """Parameters, buffers, and what a state dict has besides, as scales of quantized weights."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **model.state_dict(),
    }


def digest(tensor: Any) -> str:
    """Everything about a tensor that may not differ."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(flat.numpy()).hexdigest()}"


def read_once(model: Any) -> None:
    """Reads a byte of every page, so that bytes shown in place are really there."""
    import torch

    for tensor in model_tensors(model).values():
        tensor.detach().reshape(-1).view(torch.uint8)[::4096].sum()


def weight_bytes(model: Any) -> int:
    """Bytes of all distinct tensors."""
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in model_tensors(model).values()}
    return sum(distinct.values())
