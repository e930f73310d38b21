"""Devices that users name: which of them can hold tensors here."""

from __future__ import annotations

import torch

from dormant.tensors.exhausted_memory import is_exhausted_memory
from dormant.tensors.storage import unrecorded


def check_device(
    device: torch.device | str | int | None, operation: str, *, takes_meta: bool = False
) -> torch.device | None:
    """The device that an option of `operation` names.

    Args:
        device: the option; None where it was left out.
        operation: what the user called, for the message.
        takes_meta: whether a device without values will do.

    Returns:
        The device, or None.

    Raises:
        TypeError: `device` is of a type that PyTorch takes for none.
        MemoryError: no memory was left to try it.
        ValueError: PyTorch knows no such device, or no tensor can be made there.
    """
    if device is None:
        return None
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"{operation}: device {device!r} is not a device that PyTorch knows. Pass one like "
            "'cpu' or 'cuda:0', or leave device out to stay on the CPU."
        ) from error
    if place.type == "meta":
        if takes_meta:
            return place
        raise ValueError(
            f"{operation}: device 'meta' holds no values, so nothing could be materialized "
            'there. Use model.to("meta") to drop the values.'
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{operation}: device {str(place)!r} was asked for, but torch {torch.__version__} sees "
            "no CUDA GPU. Leave device out to stay on the CPU."
        )
    try:
        with unrecorded():
            torch.empty(0, device=place)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        if is_exhausted_memory(error):
            raise MemoryError(
                f"{operation}: out of memory. Nothing was done. Cause: {error}"
            ) from error
        reason, _, _ = str(error).partition("\n")
        raise ValueError(
            f"{operation}: device {str(place)!r} was asked for, and torch {torch.__version__} "
            f"cannot make tensors there ({reason}). Leave device out to stay on the CPU."
        ) from error
    return place
