"""A registry of idioms: each is a small builder whose name states the claim that is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from compare import Build, Comparison, compare


@dataclass(frozen=True)
class Idiom:
    """A builder and how it is compared with eager construction."""

    build: Build
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> Comparison:
        """Compares the lazy build with the eager one."""
        return compare(self.build, **self.options)


class Idioms:
    """Collects the builders of one test file.

    Used as a decorator, bare or with options:

        idiom = Idioms()

        @idiom
        def a_tied_weight_stays_tied(): ...

        @idiom(expect_lazy=0.0, reads="item: the branch needs the value")
        def a_branch_on_a_value(): ...
    """

    def __init__(self) -> None:
        self._cases: list[Any] = []

    def __call__(
        self,
        build: Build | None = None,
        *,
        expect_lazy: float | None = 1.0,
        reads: str | None = None,
        marks: tuple[pytest.MarkDecorator, ...] = (),
        **options: Any,
    ) -> Any:
        """Registers a builder.

        Args:
          build: the builder, where the decorator is used bare.
          expect_lazy: least lazy rate in bytes, as for `compare`.
          reads: why less than everything stays lazy; required where `expect_lazy` is not 1.
          marks: pytest marks of the case.
          **options: further arguments of `compare`.
        """
        if (expect_lazy == 1.0) != (reads is None):
            raise ValueError("an idiom names what reads values exactly when its lazy rate is not 1")

        def register(function: Build) -> Build:
            # A different shuffle for each, so that the order is not the same everywhere.
            order = {"shuffle": len(self._cases), "expect_lazy": expect_lazy, **options}
            self._cases.append(
                pytest.param(Idiom(function, order), id=function.__name__, marks=marks)
            )
            return function

        return register(build) if build else register

    def parametrize(self) -> Callable[[Any], Any]:
        """Makes a test function with one argument, `case`, run every idiom registered so far."""
        return pytest.mark.parametrize("case", self._cases)
