"""Checks of the options that several operations share; `operation` is for the message."""

from __future__ import annotations

import torch

from dormant.materialization.exhausted_memory import is_exhausted_memory
from dormant.tensors.storage import unrecorded


def check_memory_budget(memory_budget: int | None, operation: str) -> None:
    """Raises TypeError or ValueError unless it is a positive number of bytes or None."""
    if memory_budget is None:
        return
    if not isinstance(memory_budget, int) or isinstance(memory_budget, bool):
        raise TypeError(
            f"{operation}: memory_budget must be a number of bytes (int), got "
            f"{type(memory_budget).__name__}."
        )
    if memory_budget <= 0:
        raise ValueError(
            f"{operation}: memory_budget must be at least one byte, got {memory_budget}. "
            "Leave it out to set no bound."
        )


def check_dtype(dtype: torch.dtype | None, operation: str) -> None:
    """Raises TypeError or ValueError unless `module.to(dtype)` would take it."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{operation}: dtype must be a torch.dtype, got {type(dtype).__name__}.")
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(
            f"{operation}: dtype converts parameters as module.to does, which takes floating point "
            f"and complex dtypes only; got {dtype}."
        )


def check_device(device: torch.device | str | int | None, operation: str) -> torch.device | None:
    """The device. ValueError where it cannot hold values here."""
    if device is None:
        return None
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"{operation}: device {device!r} is none that PyTorch knows. Pass one like 'cpu' or "
            "'cuda:0', or leave device out to stay on the CPU."
        ) from error
    if place.type == "meta":
        raise ValueError(
            f"{operation}: device 'meta' holds no values, so nothing could be brought to life "
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


def check_choice(value: object, choices: tuple[str, ...], name: str, operation: str) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        expected = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{operation}: {name} must be one of {expected}; got {value!r}.")
