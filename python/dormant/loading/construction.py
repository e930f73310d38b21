"""Calls of another library's `from_pretrained` in this thread: they construct, load, initialize.

The libraries construct on the meta device, so they must invent values for what no file has. Inside
the context, the constructor is recorded instead, and everything that no file has keeps its values.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

import torch

from dormant._extension import _C
from dormant.loading.library_generator import LibraryGenerator
from dormant.loading.protection import Protection
from dormant.recording.patches import Function, Patch, declare


class Call:
    """One call of a library's `from_pretrained`.

    Attributes:
        is_constructing: whether the model's constructor is running.
        has_constructed: whether the constructor was recorded, not run on the meta device.
        generator: the state that the library's generator would have, while the constructor runs.
        loaded_inside: by id, tensors that the constructor itself has loaded from files.
        protection: what initialization must not write to now; None if it may write anywhere.
    """

    def __init__(self) -> None:
        self.is_constructing = False
        self.has_constructed = False
        self.generator: LibraryGenerator | None = None
        self.loaded_inside: dict[int, torch.Tensor] = {}
        self.protection: Protection | None = None
        self.marked: list[torch.nn.Module] = []
        self.shared: list[list[str]] = []
        self._written: dict[str, str] = {}

    @contextlib.contextmanager
    def constructing(self, *, on_meta: bool) -> Iterator[None]:
        """Surrounds the constructor. Afterwards the generator has the state as in the library.

        What the library draws for missing tensors are then the same numbers. `on_meta` says whether
        the library constructs on the meta device, or on the CPU with initialization turned off.
        """
        self.is_constructing = True
        self.generator = LibraryGenerator(on_meta=on_meta)
        try:
            with self.generator:
                yield
        finally:
            self.is_constructing = False
            self.has_constructed = True
            torch.set_rng_state(self.generator.state)
            self.generator = None

    @contextlib.contextmanager
    def protecting(self, protection: Protection) -> Iterator[None]:
        """While open, protected tensors keep their values, whatever is written to them."""
        before, self.protection = self.protection, protection
        try:
            with protection.around(protection.module):
                yield
        finally:
            self.protection = before
            self._written.update(protection.written)

    def warn(self, model: object) -> None:
        """Warns once about the loaded tensors that an initializer wrote to."""
        if not self._written:
            return
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(self._written.items()))
        warnings.warn(
            f"from_pretrained: the initialization of {type(model).__name__} wrote to tensors that "
            f"were loaded: {names}. They keep the loaded values. Initialize them in its "
            "_init_weights with the functions of transformers.initialization, which leave loaded "
            "tensors unchanged; for the values of the library, pass library_values=True to "
            "dormant.integrations.transformers.from_pretrained.",
            stacklevel=5,
        )


class _Calls(threading.local):
    """The calls of one thread, the innermost last; None stands for one that the library handles."""

    def __init__(self) -> None:
        self.open: list[Call | None] = []
        self.go_their_own_way = False


_calls = _Calls()


def current() -> Call | None:
    """The innermost call of this thread; None if there is none, or the library handles it."""
    return _calls.open[-1] if _calls.open else None


@contextlib.contextmanager
def call() -> Iterator[Call | None]:
    """Surrounds one `from_pretrained`; yields None if the library handles it."""
    here = Call() if _C.recording() and not _calls.go_their_own_way else None
    _calls.open.append(here)
    try:
        yield here
    finally:
        _calls.open.pop()


@contextlib.contextmanager
def as_the_library() -> Iterator[None]:
    """Leaves `from_pretrained` unchanged: the library initializes what no file has."""
    before = _calls.go_their_own_way
    _calls.go_their_own_way = True
    try:
        yield
    finally:
        _calls.go_their_own_way = before


def _noting_what_is_loaded(original: Function) -> Function:
    """`Module.load_state_dict` in a constructor that loads a part of its model."""

    def replacement(
        self: torch.nn.Module, state_dict: object, *args: object, **more: object
    ) -> object:
        result = original(self, state_dict, *args, **more)
        here = current()
        if here is not None and here.is_constructing and isinstance(state_dict, dict):
            values = [value for value in state_dict.values() if isinstance(value, torch.Tensor)]
            if any(_C.is_lazy(value) and _C.sources(value) for value in values):
                names = state_dict.keys()
                here.loaded_inside |= {
                    id(tensor): tensor
                    for name, tensor in self.state_dict(keep_vars=True).items()
                    if name in names and isinstance(tensor, torch.Tensor)
                }
        return result

    return replacement


declare(
    Patch(
        torch.nn.Module,
        "load_state_dict",
        "separates files that a constructor loads from what it initializes",
        _noting_what_is_loaded,
    )
)
