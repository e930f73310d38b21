"""Lazy models with accelerate's device maps, and an `init_empty_weights` that records values."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dormant.integrations.library import imported
from dormant.materialization.api import bring_to_life, is_lazy
from dormant.materialization.options import checked_options
from dormant.quantization.layerwise import pending_layers
from dormant.ranks.together import Together
from dormant.recording.context import LazyInit, lazy_init
from dormant.reporting.progress import Callback
from dormant.tensors.identity import is_wrapper


def init_empty_weights(include_buffers: bool | None = None) -> LazyInit:
    """Accelerate's context of this name, but models are lazy instead of on the meta device.

    Models that are constructed inside take no memory either, but their initialization is recorded.
    They can be used at once, loaded with `dormant.load`, quantized, or dispatched with
    `dispatch_model`. Code that calls `accelerate.init_empty_weights` itself also works inside
    `dormant.lazy_init` and gets its meta tensors.

    Args:
        include_buffers: accepted for compatibility; buffers are always lazy and cost nothing.

    Returns:
        The context, `dormant.lazy_init()`.

    Example:
        >>> import torch, dormant
        >>> from dormant.integrations.accelerate import init_empty_weights
        >>> with init_empty_weights():
        ...     layer = torch.nn.Linear(1024, 1024)
        >>> dormant.is_lazy(layer), layer.weight.device
        (True, device(type='cpu'))
    """
    del include_buffers
    return lazy_init()


def dispatch_model(
    model: torch.nn.Module,
    device_map: Mapping[str, Any],
    *,
    offload_dir: str | os.PathLike[str] | None = None,
    memory_budget: int | str | None = None,
    progress: bool | Callback | None = None,
    **options: Any,
) -> torch.nn.Module:
    """Materializes a lazy model on the devices of a device map, as `accelerate.dispatch_model`.

    Modules that go to disk are computed and written one tensor at a time, and are never in memory
    as a whole. The others are materialized on the CPU, from where accelerate moves them.

    Args:
        model: the model, lazy, real or mixed; quantize or load it (`materialize=False`) before.
        device_map: module names to devices, "cpu" or "disk", as returned by
            `accelerate.infer_auto_device_map`.
        offload_dir: the folder for modules on disk. It must not contain offloaded weights yet.
        memory_budget: the memory that this may use besides the final tensors, in bytes or as text
            like "2GiB"; None sets no limit.
        progress: as for `dormant.materialize`.
        **options: other arguments of `accelerate.dispatch_model`.

    Returns:
        `model`, with accelerate's hooks.

    Raises:
        ImportError: accelerate is not installed.
        TypeError: `memory_budget` is not a number or text.
        ValueError: the device map leaves out tensors; or it sends tensors to disk without an
            `offload_dir`, to one that is in use, or tensors that accelerate cannot load back, such
            as quantized ones. The model is unchanged.
        OSError: the system could not write the offloaded tensors.

    Example:
        >>> import tempfile, torch, dormant
        >>> from dormant.integrations.accelerate import dispatch_model
        >>> with dormant.lazy_init():
        ...     model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = dispatch_model(model, {"0": "disk", "1": "cpu"}, offload_dir=folder)
        ...     output = model(torch.ones(1, 8))
        >>> output.shape, model[0].weight.device
        (torch.Size([1, 2]), device(type='meta'))
    """
    how = checked_options("dispatch_model", memory_budget=memory_budget, progress=progress)
    library = imported("accelerate")
    devices = dict(device_map)
    imported("accelerate.utils").check_device_map(model, devices)
    on_disk = [name for name, device in devices.items() if device == "disk"]
    folder = _free_folder(offload_dir, devices, on_disk)
    _check_accelerate_can_offload(model, on_disk)
    if folder is None or pending_layers(model):
        bring_to_life([("", model)], how, Together("materialize", ()))
    if folder is not None:
        _check_accelerate_can_offload(model, on_disk)  # also layers that were pending
        offloaded = _offload(model, on_disk, folder)
        rest = [item for item in _tensors(model).items() if item[0] not in offloaded]
        bring_to_life(list(rest), how, Together("materialize", ()))
        options["offload_dir"] = str(folder)
    dispatched: torch.nn.Module = library.dispatch_model(model, devices, **options)
    return dispatched


def _free_folder(
    offload_dir: str | os.PathLike[str] | None, devices: Mapping[str, Any], on_disk: list[str]
) -> Path | None:
    if not on_disk:
        return None
    if offload_dir is None:
        raise ValueError(
            f"dispatch_model: the device map sends {', '.join(map(repr, on_disk))} to disk. Pass a "
            "folder for it as offload_dir."
        )
    if "" in on_disk and len(devices) > 1:  # accelerate looks for all of its parts on disk
        others = ", ".join(repr(name) for name in devices if name)
        raise ValueError(
            f"dispatch_model: the device map sends '', the whole model, to disk, and {others} "
            "elsewhere. Name the parts that go to disk."
        )
    folder = Path(offload_dir)
    if (folder / "index.json").exists():
        raise ValueError(
            f"dispatch_model: {folder} already contains offloaded weights (index.json), which "
            "accelerate would take for this model's. Choose an empty folder."
        )
    return folder


def _below(name: str, modules: list[str]) -> bool:
    """Whether a tensor belongs to one of `modules`, where "" is the whole model."""
    return any(not module or name == module or name.startswith(f"{module}.") for module in modules)


def _check_accelerate_can_offload(model: torch.nn.Module, on_disk: list[str]) -> None:
    """Raises ValueError if a tensor for the disk consists of more than its elements.

    accelerate stores on disk what numpy sees of a tensor. The statistics of a quantized weight are
    lost, and the model fails in the first forward pass.
    """
    refused = [
        f"{name} ({type(tensor).__name__})"
        for name, tensor in _tensors(model).items()
        if _below(name, on_disk)
        and (is_wrapper(tensor) or type(tensor).__module__.startswith("bitsandbytes"))
    ]
    if refused:
        raise ValueError(
            f"dispatch_model: the device map sends {len(refused)} quantized or wrapped tensors to "
            f"disk, from where accelerate cannot load them: {', '.join(refused[:3])}"
            f"{', ...' if len(refused) > 3 else ''}. Map these modules to a device, or leave them "
            "in full precision: dormant.quantize(model, scheme, skip=...)."
        )


def _offload(model: torch.nn.Module, on_disk: list[str], folder: Path) -> set[str]:
    """Writes the files that accelerate expects on disk; returns the names of their parameters."""
    offload = imported("accelerate.utils.offload")
    wanted = {name: tensor for name, tensor in model.state_dict().items() if _below(name, on_disk)}
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {}
    with torch.no_grad():
        for name, tensor in wanted.items():
            if is_lazy(tensor):
                with lazy_init():
                    # The model's own tensor stays lazy, and is freed when accelerate drops it.
                    tensor = tensor.clone()
            index = offload.offload_weight(tensor, name, str(folder), index=index)
    offload.save_offload_index(index, str(folder))
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if name in wanted}


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(
        itertools.chain(
            model.named_parameters(remove_duplicate=False),
            model.named_buffers(remove_duplicate=False),
        )
    )
