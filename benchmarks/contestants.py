"""Finds the contestants of a task: the modules in its folder `contestants`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Contestant:
    """One way of doing a task.

    Attributes:
        module: full name of the module that does it.
        name: as tables show it, its `NAME`.
        exact: its `EXACT`: True where it promises the values of eager construction, False where it
            gives values without such a promise, None where it gives none.

    The module's function `build` does it. Where it has a function `prepare`, that is called with
    the same arguments before the clock starts.
    """

    module: str
    name: str
    exact: bool | None


def find(task: str) -> list[Contestant]:
    """The contestants of the task in this package, ours first."""
    package = importlib.import_module(f"{task}.contestants")
    found = []
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        found.append(Contestant(module.__name__, module.NAME, module.EXACT))
    return sorted(found, key=lambda contestant: not contestant.name.startswith("dormant"))
