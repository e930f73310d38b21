"""Checks devices that users pass."""

from __future__ import annotations

import torch

from dormant.tensors.exhausted_memory import is_exhausted_memory
from dormant.tensors.storage import unrecorded


def check_device(
    device: torch.device | str | int | None, operation: str, *, takes_meta: bool = False
) -> torch.device | None:
    """Returns the device that was passed to `operation`.

    Args:
        device: the option; None if it was left out.
        operation: the operation that the user called, for messages.
        takes_meta: whether the meta device is allowed.

    Returns:
        The device, or None.

    Raises:
        TypeError: `device` has a type that PyTorch does not accept.
        MemoryError, torch.OutOfMemoryError: there is no memory to try the device.
        ValueError: PyTorch does not know the device, or cannot create tensors there.
    """
    if device is None:
        return None
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"{operation}: device {device!r} is not a device that PyTorch knows. Pass one such as "
            "'cpu' or 'cuda:0', or leave out device to stay on the CPU."
        ) from error
    if place.type == "meta":
        if takes_meta:
            return place
        raise ValueError(
            f"{operation}: device 'meta' holds no values, so nothing can be materialized there. "
            'Use model.to("meta") to drop the values.'
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{operation}: device {str(place)!r} was asked for, but torch {torch.__version__} sees "
            "no CUDA GPU. Leave out device to stay on the CPU."
        )
    try:
        with unrecorded():
            torch.empty(0, device=place)
    except torch.OutOfMemoryError:
        raise  # the device's own
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        if is_exhausted_memory(error):
            raise MemoryError(
                f"{operation}: out of memory. Nothing was changed. Cause: {error}"
            ) from error
        reason, _, _ = str(error).partition("\n")
        raise ValueError(
            f"{operation}: device {str(place)!r} was asked for, but torch {torch.__version__} "
            f"cannot make tensors there ({reason}). Leave out device to stay on the CPU."
        ) from error
    return place
