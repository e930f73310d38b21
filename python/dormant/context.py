"""`lazy_init`: where construction is recorded instead of run."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from dormant import _C, patches

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    previous = _C.set_recording(True)
    try:
        yield
    finally:
        _C.set_recording(previous)


def _recordable_device(device: torch.device | str | int) -> torch.device:
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError(
            f"lazy_init: device {str(resolved)!r} was asked for, but torch {torch.__version__} "
            "sees no CUDA GPU, and recording for a GPU that is not there is not supported yet. "
            "Record for the CPU (leave device out) and move the finished model: "
            'dormant.materialize(model, device="cuda").'
        )
    return resolved


class lazy_init:
    """Records how tensors are built instead of building them: a context manager and a decorator.

    Inside, everything that creates or initialises tensors returns at once and takes no memory; the
    random generators advance as in eager construction. It nests, applies to the calling thread
    only, and leaves no trace after an exception. What was built lazily stays so after the context
    ends, until `dormant.materialize` or the first computation that reads its values.

    Args:
        device: the device that factories use when none is given, as in `with torch.device(device)`.
            Tensors for the meta device are left to PyTorch.
        dtype: the default floating point dtype inside, restored afterwards. PyTorch keeps the
            default dtype per process, so other threads see it while the context is open.

    Raises:
        NotImplementedError: `device` is a GPU and this machine has none.
        RuntimeError: `device` is not a device PyTorch knows.
        TypeError: `dtype` is not a floating point `torch.dtype`; or, as a decorator, what is
            decorated is a class, a generator or a coroutine function.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init(dtype=torch.bfloat16):
        ...     layer = torch.nn.Linear(4, 4)
        >>> layer.weight.dtype, dormant.is_lazy(layer)
        (torch.bfloat16, True)
        >>> @dormant.lazy_init()
        ... def build():
        ...     return torch.nn.Linear(4, 4)
        >>> dormant.is_lazy(build())
        True
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(
                "lazy_init: dtype sets the default floating point dtype; expected one like "
                f"torch.bfloat16, got {dtype!r}."
            )
        self._device = None if device is None else _recordable_device(device)
        self._dtype = dtype
        # One object may be entered by several threads, and again inside itself.
        self._entered = threading.local()

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(patches.active())
            if self._dtype is not None:
                stack.enter_context(_default_dtype(self._dtype))
            if self._device is not None:
                stack.enter_context(self._device)
            stack.enter_context(_recording())
            self._stacks().append(stack.pop_all())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stacks().pop().__exit__(kind, error, traceback)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorates `function`: each call runs inside a context of its own."""
        if inspect.isclass(function):
            raise TypeError(
                f"lazy_init: cannot decorate the class {function.__qualname__}: it would no longer "
                "be a class. Decorate the function that builds it, or its __init__."
            )
        if (
            inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError(
                f"lazy_init: cannot decorate {function.__qualname__}: its body runs after the call "
                "has returned, outside the context. Use `with dormant.lazy_init():` in its body."
            )

        @functools.wraps(function)
        def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self:
                return function(*args, **kwargs)

        return inside

    def _stacks(self) -> list[contextlib.ExitStack]:
        stacks: list[contextlib.ExitStack] | None = getattr(self._entered, "stacks", None)
        if stacks is None:
            stacks = self._entered.stacks = []
        return stacks
