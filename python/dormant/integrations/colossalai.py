"""`LazyInitContext`, for code written for ColossalAI's lazy initialization."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

import torch

from dormant.materialization.api import is_lazy, materialize
from dormant.recording.context import lazy_init

_Module = TypeVar("_Module", bound=torch.nn.Module)


class LazyInitContext:
    """The interface of `colossalai.lazy.LazyInitContext`, with `lazy_init` and `materialize`.

    Unlike the original, it can be nested, is limited to the calling thread, and its tensors are
    ordinary tensors and parameters.

    Args:
        tensor_cls: the tensor class of ColossalAI's own implementation; must be None.
        default_device: the device that factory functions use if none is given, as in `lazy_init`.

    Raises:
        ValueError: `tensor_cls` is not None, or tensors cannot be created on `default_device`.
        NotImplementedError: `default_device` is neither the CPU nor the meta device.

    Example:
        >>> import torch, dormant
        >>> with dormant.LazyInitContext():
        ...     model = torch.nn.Linear(4, 4)
        >>> model = dormant.LazyInitContext.materialize(model, verbose=True)
        Param lazy rate: 2/2
        Buffer lazy rate: 0/0
        Non lazy numel: 0 (0.000 M), ratio: 0%
    """

    def __init__(
        self,
        tensor_cls: type[torch.Tensor] | None = None,
        default_device: torch.device | str | int | None = None,
    ) -> None:
        if tensor_cls is not None:
            raise ValueError(
                f"LazyInitContext: tensor_cls={tensor_cls!r} is not supported, because lazy "
                "tensors are ordinary torch.Tensor objects. Leave it out."
            )
        self._context = lazy_init(device=default_device)

    def __enter__(self) -> LazyInitContext:
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, traceback)

    @staticmethod
    def materialize(module: _Module, verbose: bool = False) -> _Module:
        """Materializes `module` in place and returns it.

        Args:
            module: the module.
            verbose: print how many tensors were still lazy, on rank 0 of a distributed job.

        Returns:
            `module` itself.

        Raises:
            The same exceptions as `dormant.materialize`.
        """
        lines = _lazy_rate(module) if verbose and _is_first_rank() else []
        materialize(module)
        for line in lines:
            print(line)
        return module


def _lazy_rate(module: torch.nn.Module) -> list[str]:
    """The three lines that ColossalAI prints for verbose=True."""
    parameters = _Count(module.parameters())
    buffers = _Count(module.buffers())
    numel = parameters.real_numel + buffers.real_numel
    total = parameters.numel + buffers.numel
    ratio: float = numel / total * 100 if numel else 0
    return [
        f"Param lazy rate: {parameters.lazy}/{parameters.tensors}",
        f"Buffer lazy rate: {buffers.lazy}/{buffers.tensors}",
        f"Non lazy numel: {numel} ({numel / 1024**2:.3f} M), ratio: {ratio}%",
    ]


class _Count:
    """The number of tensors, and how many of them are lazy."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.tensors = self.lazy = self.numel = self.real_numel = 0
        for tensor in tensors:
            self.tensors += 1
            self.numel += tensor.numel()
            if is_lazy(tensor):
                self.lazy += 1
            else:
                self.real_numel += tensor.numel()


def _is_first_rank() -> bool:
    distributed = torch.distributed
    return not (
        distributed.is_available() and distributed.is_initialized() and distributed.get_rank()
    )
