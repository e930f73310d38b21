"""`lazy_init`, the context in which construction is recorded instead of run."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, TypeVar, overload

import torch

from dormant._extension import _C
from dormant.recording import patches
from dormant.tensors.device import check_device

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _DefaultDtype:
    """The default dtype of the process while the context is open.

    Contexts of several threads, or of tasks that take turns, may end in any order: the last one
    restores the dtype from before the first.
    """

    _lock = threading.Lock()
    _open: ClassVar[list[_DefaultDtype]] = []

    # In a forked child, the lock must not be held by a thread that does not exist there.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __enter__(self) -> None:
        with self._lock:
            self._previous = torch.get_default_dtype()
            torch.set_default_dtype(self._dtype)
            self._open.append(self)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            place = next(i for i, opened in enumerate(self._open) if opened is self)
            if place == len(self._open) - 1:
                torch.set_default_dtype(self._previous)
            else:
                self._open[place + 1]._previous = self._previous
            del self._open[place]


class _Recording(threading.local):
    """Recording in this thread, which is on until the last of its contexts ends, in any order."""

    def __init__(self) -> None:
        self._open = 0
        self._before = False

    def __enter__(self) -> None:
        before = _C.set_recording(True)
        if not self._open:
            self._before = before
        self._open += 1

    def __exit__(self, *error: object) -> None:
        self._open -= 1
        _C.set_recording(self._before or self._open > 0)


_recording = _Recording()


class LazyInit:
    """The result of `lazy_init`: a context manager, which may be entered again, and a decorator."""

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(
                "lazy_init: dtype sets the default floating-point dtype; expected one like "
                f"torch.bfloat16, got {dtype!r}."
            )
        self._device = check_device(device, "lazy_init", takes_meta=True)
        if self._device is not None and self._device.type not in ("cpu", "meta"):
            raise NotImplementedError(
                f"lazy_init: tensors on {str(self._device)!r} cannot be recorded; the model would "
                "be constructed there at once. Leave out device, and pass it to "
                "dormant.materialize or dormant.load, which make each tensor there."
            )
        self._dtype = dtype
        # One object may be entered by several threads, and again inside itself.
        self._entered = threading.local()

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(patches.in_use())
            if self._dtype is not None:
                stack.enter_context(_DefaultDtype(self._dtype))
            if self._device is not None:
                stack.enter_context(self._device)
            stack.enter_context(_recording)
            self._stacks().append(stack.pop_all())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stacks = self._stacks()
        if not stacks:
            raise RuntimeError(
                "lazy_init: the context was left in a thread that did not enter it, but recording "
                "belongs to the thread of `with`. If a generator is suspended inside the context, "
                "the thread that started it must resume or close it."
            )
        stacks.pop().__exit__(kind, error, traceback)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorates `function`, so that each call runs inside a new context."""
        if inspect.isclass(function):
            raise TypeError(
                f"lazy_init: cannot decorate the class {function.__qualname__}, because it would "
                "no longer be a class. Decorate the function that constructs it, or its __init__."
            )
        if (
            inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError(
                f"lazy_init: cannot decorate {function.__qualname__}, because its body runs after "
                "the call has returned, outside the context. Use `with dormant.lazy_init():` in "
                "its body."
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


@overload
def lazy_init(function: Callable[_P, _R], /) -> Callable[_P, _R]: ...
@overload
def lazy_init(
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
) -> LazyInit: ...
def lazy_init(device: Any = None, dtype: torch.dtype | None = None) -> Any:
    """Records the construction of tensors instead of running it.

    It is a context manager and a decorator. Inside, everything that creates or initializes tensors
    returns at once and takes no memory; the random generators advance as in eager construction. The
    context can be nested, applies to the calling thread only, and leaves no trace after an
    exception. Tensors that were constructed lazily stay lazy after the context ends, until
    `dormant.materialize` or the first computation that reads their values. Code that takes turns in
    one thread (generators, tasks of asyncio) is recorded while any of its contexts is open.

    Args:
        function: the decorated function, if it is used without parentheses (`@dormant.lazy_init`).
        device: the device that factory functions use if none is given, as in `with
            torch.device(device)`: the CPU, or the meta device, whose tensors are left to PyTorch.
            Models for a GPU are recorded on the CPU; see `materialize`.
        dtype: the default floating-point dtype inside the context, restored afterwards. In PyTorch,
            the default dtype belongs to the process, so other threads see it while the context is
            open.

    Raises:
        ValueError: PyTorch does not know `device`, or cannot create tensors there.
        NotImplementedError: `device` is another device than these two.
        RuntimeError: the context is left in a thread that did not enter it.
        TypeError: `dtype` is not a floating-point `torch.dtype`; or the decorated object is a
            class, a generator function or a coroutine function.

    Example:
        >>> import torch, dormant
        >>> with dormant.lazy_init(dtype=torch.bfloat16):
        ...     layer = torch.nn.Linear(4, 4)
        >>> layer.weight.dtype, dormant.is_lazy(layer)
        (torch.bfloat16, True)
        >>> @dormant.lazy_init
        ... def build():
        ...     return torch.nn.Linear(4, 4)
        >>> dormant.is_lazy(build())
        True
    """
    # A torch.device is callable, because it is a decorator itself.
    if callable(device) and not isinstance(device, torch.device):
        return LazyInit(dtype=dtype)(device)
    return LazyInit(device, dtype)
