"""LLaMA2-Accessory's two functions for large models, under their own names.

`default_tensor_type` constructs models lazily; `load_tensor_parallel_model_list` loads checkpoints
of Meta and of LLaMA2-Accessory that were saved by any number of ranks.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dormant import tensor_parallel
from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.files import find_groups
from dormant.loading.api import load
from dormant.recording.context import lazy_init
from dormant.reporting.progress import Callback
from dormant.tensor_parallel import REPLICATED, Rule, Rules, Sharded
from dormant.tensors.device import check_device

# Meta's files lack the prefix of LLaMA2-Accessory's MetaModel (accessory/util/tensor_parallel.py).
_PREFIX = "llma."

# fairscale's layers, and the dimension along which each of their tensors is divided.
_DIVIDED: dict[str, dict[str, int]] = {
    "ColumnParallelLinear": {"weight": 0, "bias": 0},
    "RowParallelLinear": {"weight": 1},
    "ParallelEmbedding": {"weight": 1},
}


class _Devices(threading.local):
    """The devices of this thread's open contexts, the innermost last."""

    def __init__(self) -> None:
        self.open = ["cpu"]


_devices = _Devices()


class default_tensor_type:
    """A context with LLaMA2-Accessory's name and arguments, in which models are lazy.

    Args:
        dtype: the default dtype inside; None keeps the surrounding one.
        device: "cpu" or "cuda"; None keeps the surrounding one. Models are recorded on the CPU;
            `get_current_materialization_device()` is where to materialize them.
        is_meta: accepted for compatibility; models are lazy for any value.

    Raises:
        TypeError: `dtype` is not a floating-point dtype.
        ValueError: `device` is another device, or "cuda" and there is no GPU.

    Example:
        >>> import torch, dormant
        >>> from dormant.integrations.llama2_accessory import default_tensor_type
        >>> with default_tensor_type(dtype=torch.bfloat16, device="cpu"):
        ...     layer = torch.nn.Linear(4, 4)
        >>> layer.weight.dtype, dormant.is_lazy(layer)
        (torch.bfloat16, True)
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        is_meta: bool | None = None,
    ) -> None:
        del is_meta
        if device not in (None, "cpu", "cuda"):
            raise ValueError(
                f'default_tensor_type: device must be "cpu", "cuda" or None, got {device!r}.'
            )
        check_device(device, "default_tensor_type")
        self._context = lazy_init(device=None if device is None else "cpu", dtype=dtype)
        self._device = device

    def __enter__(self) -> None:
        self._context.__enter__()
        _devices.open.append(self._device or _devices.open[-1])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, traceback)
        _devices.open.pop()

    @staticmethod
    def get_current_materialization_device() -> torch.device:
        """The device of this thread's innermost context; the CPU outside of any context."""
        return torch.device(_devices.open[-1])


def load_tensor_parallel_model_list(
    model: torch.nn.Module,
    path_list: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    verbose: bool = False,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    rules: Rules | None = None,
    memory_budget: int | str | None = None,
    progress: bool | Callback | None = None,
) -> dict[str, list[str]]:
    """Loads several checkpoints in order into this rank's part of a model, in one pass.

    A folder of Meta's files (consolidated.00.pth, ...) or LLaMA2-Accessory's files
    (consolidated.00-of-02.model.pth, ...) replaces the tensors before it; a folder of differences
    (consolidated.00-of-02.model-diff.pth, ...) is added to them, in the model's dtype. Only the
    elements of this rank's part are read, each once, for any number of ranks that saved them.

    Args:
        model: the model, lazy or real. Its fairscale layers (ColumnParallelLinear,
            RowParallelLinear, ParallelEmbedding) determine which tensors are divided.
        path_list: the folders, in the order of loading; or a single folder.
        verbose: print the report.
        rank: this rank of model parallelism; None uses fairscale's, or 0 if fairscale is not used.
        world_size: the number of ranks; None uses fairscale's, or 1.
        rules: how tensors are divided; None means as the model's layers say, or LLaMA's rules if
            the model has no fairscale layers.
        memory_budget: as for `dormant.load`.
        progress: as for `dormant.load`.

    Returns:
        "missing_keys": names of the model that no checkpoint has; "unexpected_keys": names that
        the model does not have; sorted.

    Raises:
        ValueError: a folder has no such checkpoint, or the first one has differences; shapes do not
            match, or a tensor that all ranks hold whole differs between them.
        KeyError: tensors do not have the shapes of the model, or ranks lack names.
        OSError: there is no such folder, or the system could not read a file.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from dormant.integrations.llama2_accessory import *
        >>> with default_tensor_type(dtype=torch.bfloat16):
        ...     model = torch.nn.ModuleDict({"llma": torch.nn.Linear(2, 2)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "consolidated.00-of-01.model.pth")
        ...     torch.save({"model": {"llma.weight": torch.ones(2, 2)}}, path)
        ...     load_tensor_parallel_model_list(model, [folder])
        {'missing_keys': ['llma.bias'], 'unexpected_keys': []}
    """
    here, count = _place(rank, world_size)
    own = dict(model.state_dict())
    divided = _rules(model) if rules is None else rules
    state: dict[str, torch.Tensor] = {}
    paths = [path_list] if isinstance(path_list, (str, os.PathLike)) else path_list
    for number, path in enumerate(paths):
        parts, differences = _open(path)
        if differences and number == 0:
            raise ValueError(
                f"load_tensor_parallel_model_list: {os.fspath(path)} contains differences; the "
                "first checkpoint of the list must be complete."
            )
        whole = len(parts) == count == 1
        part = tensor_parallel.reshard(parts, count, rules={"*": REPLICATED} if whole else divided)[
            here
        ]
        with lazy_init(), torch.no_grad():
            part = {name: _cast(tensor, own.get(name)) for name, tensor in part.items()}
        state = tensor_parallel.apply_diffs(state, [part]) if differences else {**state, **part}
    report = load(
        model,
        state,
        missing="init",  # the caller is told, as the library does
        unexpected="ignore",
        memory_budget=memory_budget,
        progress=progress,
        verbose=verbose,
    )
    return {
        "missing_keys": sorted(report.missing_keys),
        "unexpected_keys": sorted(report.unexpected_keys),
    }


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    fairscale: Any = sys.modules.get("fairscale.nn.model_parallel.initialize")
    if fairscale is not None and fairscale.model_parallel_is_initialized():
        rank = fairscale.get_model_parallel_rank() if rank is None else rank
        world_size = fairscale.get_model_parallel_world_size() if world_size is None else world_size
    here, count = rank or 0, world_size or 1
    if not 0 <= here < count:
        raise ValueError(
            f"load_tensor_parallel_model_list: rank {here} of {count}; expected 0 <= rank < "
            "world_size."
        )
    return here, count


def _rules(model: torch.nn.Module) -> Rules | None:
    """How the model's layers divide their tensors; None if none of them does."""
    rules: dict[str, Rule] = {}
    for prefix, module in model.named_modules():
        kinds = (kind.__name__ for kind in type(module).__mro__)
        divided = next((_DIVIDED[kind] for kind in kinds if kind in _DIVIDED), {})
        for name, dim in divided.items():
            rules[f"{prefix}.{name}" if prefix else name] = Sharded(dim)
    return {**rules, "*": REPLICATED} if rules else None


def _open(path: str | os.PathLike[str]) -> tuple[list[Mapping[str, torch.Tensor]], bool]:
    """The tensors of each rank, by LLaMA2-Accessory's names, and whether they are differences."""
    if not Path(path).is_dir():
        raise ValueError(
            f"load_tensor_parallel_model_list: {os.fspath(path)} is not a folder; expected a "
            "folder that contains consolidated.*.pth."
        )
    (group,) = find_groups([path])
    if not all(file.name.startswith("consolidated.") for file in group.files):
        raise ValueError(
            f"load_tensor_parallel_model_list: {os.fspath(path)} contains {group.files[0].name}, "
            "expected consolidated.*.pth. Load it with dormant.load."
        )
    files = [file for file in group.files if isinstance(file, Path)]
    parts: list[Mapping[str, torch.Tensor]] = [_part(file) for file in files]
    return parts, group.kind == "differences"


def _part(file: Path) -> Mapping[str, torch.Tensor]:
    state = dict(open_checkpoint(file).items())
    if "-of-" in file.name:
        return state
    return {f"{_PREFIX}{name}": tensor for name, tensor in state.items()}


def _cast(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    """Casts to the model's dtype, in which sums are computed and rounded."""
    return tensor if like is None else tensor.to(like.dtype)
